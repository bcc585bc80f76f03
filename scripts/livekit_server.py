"""A real LiveKit server on this machine: find it or build it, and run it on loopback.

    python scripts/livekit_server.py --install     print the path of the binary, after building it if need be
    python scripts/livekit_server.py               run it until Ctrl-C

Found on PATH as ``livekit-server``, or in ``.tools/bin``; otherwise built by Go from the pinned version (first time a few
minutes and some 400 MB of modules). Without Go: install Go 1.26 or later, a livekit-server binary, or use Docker
(``docker run --rm --network host livekit/livekit-server:v1.13.5 --dev``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

VERSION = "v1.13.5"
TOOLS = Path(__file__).resolve().parent.parent / ".tools"
PORT = 7880
API_KEY, API_SECRET = "devkey", "a-secret-for-this-machine-and-no-other"
"""Known to all: the server listens on loopback alone."""


class NoServerError(Exception):
    """There is no LiveKit server and none can be built; the message says what to install."""


def find() -> Path | None:
    """The binary, if it is there."""
    on_path = shutil.which("livekit-server")
    if on_path is not None:
        return Path(on_path)
    built = TOOLS / "bin" / "livekit-server"
    return built if built.is_file() else None


def install() -> Path:
    """The binary; built if it is not there. Errors: `NoServerError`."""
    found = find()
    if found is not None:
        return found
    go = shutil.which("go")
    if go is None:
        raise NoServerError(
            "no livekit-server on PATH and no Go to build one: install Go 1.26 or later (https://go.dev/dl), "
            "or a livekit-server binary, or use Docker (see scripts/livekit_server.py)"
        )
    print(f"building livekit-server {VERSION} with {go}; this takes some minutes the first time", file=sys.stderr)
    binaries = TOOLS / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(binaries), "CGO_ENABLED": "0"}
    command = [go, "install", f"github.com/livekit/livekit-server/cmd/server@{VERSION}"]
    if subprocess.run(command, cwd=TOOLS, env=environment, check=False).returncode:
        raise NoServerError(f"go could not build livekit-server {VERSION}; what it said stands above")
    built = binaries / "livekit-server"
    (binaries / "server").rename(built)
    return built


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]
    api_key: str = API_KEY
    api_secret: str = API_SECRET


def arguments(port: int, udp_port: int, tcp_port: int) -> list[str]:
    """Flags that keep everything, media included, on this machine."""
    config = (
        f"port: {port}\n"
        "rtc:\n"
        f"  tcp_port: {tcp_port}\n"
        "  enable_loopback_candidate: true\n"
        "  interfaces:\n    includes: [lo]\n"
        # without an entry the server hands out public STUN servers
        f'  stun_servers: ["127.0.0.1:{udp_port}"]\n'
    )
    loopback = ["--bind", "127.0.0.1", "--node-ip", "127.0.0.1", "--udp-port", str(udp_port)]
    return ["--dev", "--keys", f"{API_KEY}: {API_SECRET}", *loopback, "--config-body", config]


@contextlib.contextmanager
def running(binary: Path | None = None, *, port: int | None = None, log: Path | None = None) -> Generator[Running]:
    """A server for as long as the block lasts, on ports that are free. Errors: `NoServerError`."""
    binary = binary or install()
    port = port or free_port()
    out = log.open("wb") if log is not None else subprocess.DEVNULL
    command = [str(binary), *arguments(port, free_port(socket.SOCK_DGRAM), free_port())]
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}", process)
        yield Running(f"ws://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        try:
            process.wait(2)  # it waits for rooms that are open
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if log is not None and not isinstance(out, int):
            out.close()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NoServerError(f"livekit-server ended at once with status {process.returncode}")
        try:
            with opener.open(url, timeout=1.0):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    raise NoServerError(f"livekit-server did not answer at {url} within {timeout_s:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="A LiveKit server on this machine, on loopback alone.")
    parser.add_argument("--install", action="store_true", help="build it if need be, print its path and end")
    parser.add_argument("--port", type=int, default=PORT)
    given = parser.parse_args()
    try:
        binary = install()
    except NoServerError as error:
        print(f"livekit-server: {error}", file=sys.stderr)
        return 1
    if given.install:
        print(binary)
        return 0
    with running(binary, port=given.port) as server:
        print(f"{server.url}  api key {server.api_key}, secret {server.api_secret}", flush=True)
        try:
            server.process.wait()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
