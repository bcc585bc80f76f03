"""`higgs-voice bench concurrency` from a checkout: python benchmarks/concurrency.py [--help]. What is measured: higgs_voice/bench/concurrency.py."""

import sys

from higgs_voice.cli import app

if __name__ == "__main__":
    app(["bench", "concurrency", *sys.argv[1:]], prog_name="higgs-voice")
