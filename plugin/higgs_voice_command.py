"""The program `higgs-voice`. It stands outside the package, whose import takes long enough for a Ctrl-C to come within it."""

import _signal as signal  # pyright: ignore[reportMissingImports]  # what signal.py imports takes its time too


def main() -> None:
    """Ctrl-C ends the process by the signal, without a traceback, until a command takes it and after that."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # or who started this ignores Ctrl-C
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from higgs_voice.cli import app

    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app()
    finally:
        if heeded:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
