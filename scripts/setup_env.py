"""Set up `.venv` in the project's root, or find in a few milliseconds that it is set up already.

With the argument ``boson`` it is `.venv-boson`, for boson_multimodal, whose pins shut out what `.venv` holds.

Run by the Makefile with whatever python3 there is, so this file keeps to the standard library and to syntax that an old
python3 can read: the message about a version that is too old has to come from here.

uv does the work: the one on PATH, else one from the package index into `.venv` itself. A stamp in `.venv` holds a digest of
all that decides what is installed; while it is the same, nothing is resolved or installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Folder, extras, constraints.
ENVIRONMENTS = {
    "": (".venv", "engine,pipecat,livekit,server,dev", "constraints.txt"),
    "boson": (".venv-boson", "boson,server", "constraints-boson.txt"),
}
CHOICE = sys.argv[1] if len(sys.argv) > 1 else ""
FOLDER, EXTRAS, CONSTRAINTS = ENVIRONMENTS.get(CHOICE, ENVIRONMENTS[""])
VENV = os.path.join(ROOT, FOLDER)
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "higgs-voice.stamp")
OLDEST = (3, 11)
HEARTBEAT_S = 15.0


class SetupError(Exception):
    """What stops the set-up, in words for the person at the terminal."""


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def digest() -> str:
    """A digest of what decides the content of the environment, its place included: an editable install names it."""
    state = hashlib.sha256()
    for name in ("pyproject.toml", CONSTRAINTS, os.path.join("scripts", "setup_env.py")):
        with open(os.path.join(ROOT, name), "rb") as file:
            state.update(file.read())
    state.update(ROOT.encode())
    return state.hexdigest()


def is_current() -> bool:
    """Whether the environment was set up completely, from the present files, and still has its interpreter."""
    try:
        with open(STAMP) as file:
            return file.read().strip() == digest() and os.path.exists(VENV_PYTHON)
    except OSError:
        return False


def works(*command: str) -> bool:
    """Whether a command can be run and succeeds."""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        return done.returncode == 0
    except OSError:
        return False


def run(*command: str) -> None:
    """Run one step, with a sign of life where no terminal shows the tool's own progress bar."""
    began = time.monotonic()
    done = threading.Event()

    def report() -> None:
        while not done.wait(HEARTBEAT_S):
            say(f"still at it, {time.monotonic() - began:.0f} s")

    if not sys.stderr.isatty():
        threading.Thread(target=report, daemon=True).start()
    try:
        code = subprocess.call(command, cwd=ROOT)
    finally:
        done.set()
    if code != 0:
        raise SetupError("'{}' failed with exit code {}; its output above says why".format(" ".join(command), code))


def trust_system_certificates() -> None:
    """Let uv trust what this machine trusts, as pip does: a company's proxy signs with a certificate of its own."""
    paths = ssl.get_default_verify_paths()
    if sys.platform == "darwin" or paths.cafile or (paths.capath and os.listdir(paths.capath)):
        os.environ.setdefault("UV_SYSTEM_CERTS", "1")
        os.environ.setdefault("UV_NATIVE_TLS", "1")  # the name that earlier versions know


def find_python() -> str | None:
    """A Python that is new enough: the one that runs this file, or a later one on PATH. None where there is none."""
    if sys.version_info[:2] >= OLDEST:
        return sys.executable
    for minor in range(14, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and works(found, "-c", ""):
            return found
    return None


def create(uv: str | None, python: str | None) -> None:
    """Make an empty environment. Without uv its pip comes from ensurepip, which Debian packs apart from Python."""
    if uv:
        # uv can fetch a Python itself where the system's is too old.
        run(uv, "venv", "--quiet", "--clear", "--python", python or ">={}.{}".format(*OLDEST), VENV)
        return
    if python is None:
        raise SetupError(
            "Python {}.{} or later is needed and this is {}.{}. Install a newer python3, or uv, which brings its own; or "
            "name one: make PYTHON=/path/to/python3".format(OLDEST[0], OLDEST[1], *sys.version_info[:2])
        )
    if not works(python, "-m", "ensurepip", "--version"):
        version = subprocess.check_output(
            [python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"], universal_newlines=True
        ).strip()
        raise SetupError(
            "this Python cannot make virtual environments: its ensurepip module is missing. On Debian and Ubuntu: "
            f"apt-get install python{version}-venv; or install uv"
        )
    run(python, "-m", "venv", "--clear", VENV)


def install(uv: str | None) -> None:
    """Install the project, editable, with its extras and with the versions of constraints.txt."""
    what = ["-c", os.path.join(ROOT, CONSTRAINTS), "-e", f"{ROOT}[{EXTRAS}]"]
    own_uv = os.path.join(VENV, "bin", "uv")
    if not uv and not os.path.exists(own_uv):
        say(f"installing uv into {FOLDER}")
        # Without uv pip does the same work, only slower.
        subprocess.call(
            [VENV_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what[:2], "uv"], cwd=ROOT
        )
    tool = uv or own_uv
    if works(tool, "--version"):
        # As pip does it: torch and transformers start several times faster from bytecode.
        run(tool, "pip", "install", "--compile-bytecode", "--python", VENV_PYTHON, *what)
    else:
        run(VENV_PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *what)


def main() -> None:
    if CHOICE not in ENVIRONMENTS:
        raise SetupError(f"there is no environment {CHOICE!r}; name 'boson', or none for .venv")
    os.chdir(ROOT)
    # Two runs of make at once: the second waits and then finds the work done.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("waiting for another set-up of this folder to end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if is_current():
        return
    began = time.monotonic()
    # An active environment of the user's own must not redirect what is installed.
    os.environ.pop("VIRTUAL_ENV", None)
    trust_system_certificates()
    uv = shutil.which("uv")
    if uv and not works(uv, "--version"):
        uv = None
    if not works(VENV_PYTHON, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST})"):
        say(f"making {FOLDER}")
        create(uv, find_python())
    say(f"installing higgs-voice[{EXTRAS}]: about 6 GB on disk the first time (PyTorch), minutes on most lines")
    install(uv)
    with open(STAMP, "w") as file:
        file.write(digest() + "\n")
    say(f"done in {time.monotonic() - began:.0f} s")
    if CHOICE == "":
        say(f"for the commands in a shell: source {FOLDER}/bin/activate; higgs-voice doctor")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit("setup: " + str(error))
