"""`higgs-voice bench bargein` from a checkout: python benchmarks/bargein.py [--help]. What is measured: higgs_voice/bench/bargein.py."""

import sys

from higgs_voice.cli import app

if __name__ == "__main__":
    app(["bench", "bargein", *sys.argv[1:]], prog_name="higgs-voice")
