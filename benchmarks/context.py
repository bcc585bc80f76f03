"""`higgs-voice bench context` from a checkout: python benchmarks/context.py [--help]. What is measured: higgs_voice/bench/context.py."""

import sys

from higgs_voice.cli import app

if __name__ == "__main__":
    app(["bench", "context", *sys.argv[1:]], prog_name="higgs-voice")
