"""`higgs-voice bench latency` from a checkout: python benchmarks/latency.py [--help]. What is measured: higgs_voice/bench/latency.py."""

import sys

from higgs_voice.cli import app

if __name__ == "__main__":
    app(["bench", "latency", *sys.argv[1:]], prog_name="higgs-voice")
