"""A LiveKit call on this machine with one command: `make livekit`, or `python agents/livekit_local.py`.

Starts a LiveKit server, an engine server (`higgs-voice serve`) and the worker of agents/livekit_agent.py, each a process of its
own that listens on loopback alone; waits until each is ready; prints how to join; and ends them all on Ctrl-C, or when one
of them ends. What they say is kept in out/livekit.

With ``--json`` the one line on stdout is an object with `url`, `token`, `room`, `join`, `engine` and the `processes`, printed
when a caller may join.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from livekit import api

from scripts import livekit_server

ROOT = Path(__file__).resolve().parent.parent
ENGINE_PORT = 8765
ENGINE_READY_S = 300.0
"""A large model is loaded from disk."""
READY_S = 60.0


class LocalError(Exception):
    """It cannot go on; the message says why and what to do."""


class EndedError(Exception):
    """Somebody asked for the end."""


@dataclass(frozen=True)
class Child:
    """A process in a group of its own, so that Ctrl-C reaches it only through `Local`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Errors: `LocalError` when it has ended."""
        status = self.process.poll()
        if status is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            said = f': "{lines[-1].strip()[:200]}"' if lines else ""
            raise LocalError(f"{self.name} ended with status {status}{said}; all it said is in {_shown(self.log)}")

    def stop(self, timeout_s: float) -> None:
        """Ask it to end, wait, and kill what is left of its group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Local:
    """The three processes. `end` may be set from a signal handler."""

    def __init__(self, model: str, *, port: int, engine_port: int, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.end = threading.Event()
        self.children: list[Child] = []
        self._port = port
        self._engine_port = engine_port
        self.url = ""
        self.engine_url = ""

    def start(self, say: Callable[[str], None]) -> None:
        """Everything, each when what it needs is ready. Errors: `LocalError`, `EndedError`, `NoServerError`."""
        remote = self.model.startswith(("ws://", "wss://"))
        port = _port(self._port, "LiveKit's port", "--port")
        engine_port = 0 if remote else _port(self._engine_port, "the engine's port", "--engine-port")
        self.url = f"ws://127.0.0.1:{port}"
        self.engine_url = self.model if remote else f"ws://127.0.0.1:{engine_port}"
        binary = livekit_server.install()
        self.folder.mkdir(parents=True, exist_ok=True)
        udp, tcp = livekit_server.free_port(socket.SOCK_DGRAM), livekit_server.free_port()
        server = self._spawn("livekit-server", [str(binary), *livekit_server.arguments(port, udp, tcp)])
        engine: Child | None = None
        if not remote:
            serve = [
                sys.executable,
                "-m",
                "higgs_voice.cli",
                "serve",
                "--model",
                self.model,
                "--port",
                str(engine_port),
            ]
            engine = self._spawn("engine", serve)  # it loads while the LiveKit server starts
        self._wait(server, lambda: _answers(f"http://127.0.0.1:{port}"), READY_S)
        say(f"LiveKit server  {self.url}")
        if engine is not None:
            say(f"loading {self.model} …")
            self._wait(engine, lambda: _answers(f"http://127.0.0.1:{engine_port}/readyz"), ENGINE_READY_S)
        say(f"engine server   {self.engine_url}  ({self.model})")
        agent = ROOT / "agents" / "livekit_agent.py"
        worker = self._spawn("worker", [sys.executable, str(agent), "dev", "--no-reload"])
        self._wait(worker, lambda: b"registered worker" in worker.log.read_bytes(), READY_S)
        say("worker          registered")

    def watch(self) -> None:
        """Until the end is asked for. Errors: `LocalError` when a process ends by itself."""
        while not self.end.wait(0.25):
            for child in self.children:
                child.check()

    def stop(self) -> None:
        """Nothing is left afterwards. The callers' side ends first."""
        for child in reversed(self.children):
            child.stop(timeout_s=8.0 if child.name == "worker" else 3.0)
        self.children.clear()

    def token(self, room: str, identity: str) -> str:
        """For one caller, good for twelve hours."""
        grants = api.VideoGrants(room_join=True, room=room)
        token = api.AccessToken(livekit_server.API_KEY, livekit_server.API_SECRET)
        return token.with_identity(identity).with_ttl(timedelta(hours=12)).with_grants(grants).to_jwt()

    def _spawn(self, name: str, command: list[str]) -> Child:
        environment = {
            **os.environ,
            "LIVEKIT_URL": self.url,
            "LIVEKIT_API_KEY": livekit_server.API_KEY,
            "LIVEKIT_API_SECRET": livekit_server.API_SECRET,
            "HIGGS_VOICE_MODEL": self.engine_url,
            "NO_COLOR": "1",
        }
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def _wait(self, child: Child, ready: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            for item in self.children:
                item.check()
            if time.monotonic() > deadline:
                raise LocalError(f"{child.name} was not ready within {timeout_s:.0f} s; see {_shown(child.log)}")
            if self.end.wait(0.1):
                raise EndedError


def _port(number: int, what: str, option: str) -> int:
    """A port of this machine that is free now; 0 means any. Errors: `LocalError`."""
    if number == 0:
        return livekit_server.free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            reason = error.strerror or error
            raise LocalError(
                f"{what} {number} cannot be used ({reason}): end what listens there, or name another by {option} (0: any)"
            ) from error
    return number


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1.0):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def join_link(url: str, token: str) -> str:
    """LiveKit's own page; the page is theirs, the call stays on this machine."""
    return f"https://meet.livekit.io/custom?{urlencode({'liveKitUrl': url, 'token': token})}"


def invitation(url: str, token: str, room: str, folder: Path) -> str:
    """For people."""
    return f"""
Join with a browser on this machine (Chrome or Firefox; Safari lets no web page reach 127.0.0.1):

  {join_link(url, token)}

or with any LiveKit client at {url}, in room "{room}", with this token:

  {token}

The agent greets you. Open the chat and type: it answers aloud, and a new message interrupts it. What follows "say:" is
said as it stands. Your voice interrupts it too; with no speech recognition nobody understands what you say
(HIGGS_AGENT_STT_URL names one, HIGGS_AGENT_LLM_URL an LLM: see agents/livekit_agent.py).

Logs are in {_shown(folder)}. Ctrl-C ends everything.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="A LiveKit call on this machine: server, engine, worker, a join link.")
    parser.add_argument("--model", default="nano", help="the engine's model, or ws://host:port of one that runs")
    parser.add_argument("--port", type=int, default=livekit_server.PORT, help="LiveKit's; 0 takes a free one")
    parser.add_argument("--engine-port", type=int, default=ENGINE_PORT, help="the engine server's; 0 takes a free one")
    parser.add_argument("--room", default="talk")
    parser.add_argument("--name", default="caller", help="yours, in the room")
    parser.add_argument("--logs", type=Path, default=ROOT / "out" / "livekit", help="folder of the processes' logs")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON line when a caller may join, and nothing else"
    )
    given = parser.parse_args()
    local = Local(given.model, port=given.port, engine_port=given.engine_port, folder=given.logs.resolve())

    def end(*_: object) -> None:
        local.end.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)

    def say(line: str) -> None:
        if not given.json:
            print(line, flush=True)

    try:
        local.start(say)
        token = local.token(given.room, given.name)
        if given.json:
            facts = {
                "url": local.url,
                "room": given.room,
                "token": token,
                "join": join_link(local.url, token),
                "engine": local.engine_url,
                "processes": {child.name: child.process.pid for child in local.children},
            }
            print(json.dumps(facts), flush=True)
        say(invitation(local.url, token, given.room, local.folder))
        local.watch()
    except EndedError:
        pass
    except (LocalError, livekit_server.NoServerError) as error:
        print(f"livekit: {error}", file=sys.stderr)
        return 1
    finally:
        say("ending …")
        local.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
