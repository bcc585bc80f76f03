"""`make livekit`: the command as a process, and a caller who joins with what it prints. Run by `make test-livekit`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.livekit_stage import ROOT, Caller

pytestmark = pytest.mark.timeout(240)


@dataclass
class Invited:
    """What the command printed, as a place to join."""

    facts: dict[str, Any]

    @property
    def url(self) -> str:
        return self.facts["url"]

    def token(self, room: str, name: str) -> str:
        assert room == self.facts["room"]
        return self.facts["token"]


class Command:
    """`agents/livekit_local.py` on ports that are free."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "agents/livekit_local.py", "--json", "--logs", str(folder)]
        ports = [] if "--port" in words else ["--port", "0"]
        self.process = subprocess.Popen(
            [*command, *ports, "--engine-port", "0", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._family: list[psutil.Process] = []

    def facts(self) -> dict[str, Any]:
        """The line it prints when a caller may join."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=10)[1]
        return json.loads(line)

    def remember(self) -> None:
        """Note every process that belongs to it now."""
        self._family = psutil.Process(self.process.pid).children(recursive=True)

    def ended(self, timeout_s: float = 30.0) -> tuple[int, str]:
        """Its status and what it said on stderr, once it has ended. Nothing may be left of what it started."""
        said = self.process.communicate(timeout=timeout_s)[1]
        left = psutil.wait_procs(self._family, timeout=2)[1]
        assert not left, f"still there: {left}"
        return self.process.returncode, said


@contextlib.contextmanager
def command(folder: Path, *words: str) -> Generator[Command]:
    item = Command(folder, *words)
    try:
        yield item
    finally:
        if item.process.poll() is None:
            item.process.terminate()
            item.process.communicate(timeout=30)


async def test_who_joins_with_what_is_printed_talks_and_ctrl_c_ends_it_all(tmp_path: Path) -> None:
    with command(tmp_path) as running:
        facts = await asyncio.to_thread(running.facts)
        assert set(facts["processes"]) == {"livekit-server", "engine", "worker"}
        assert facts["join"].startswith("https://meet.livekit.io/custom?liveKitUrl=ws%3A%2F%2F127.0.0.1%3A")
        assert facts["join"].endswith(facts["token"])
        async with Caller(Invited(facts), facts["room"]) as caller:
            await caller.until_quiet(await caller.until_audible(0, 60.0), 1.0)  # the greeting
            since = len(caller.heard)
            await caller.send("say: Your order will be there on Friday.")
            start = await caller.until_audible(since, 30.0)
            stop = await caller.until_quiet(start, 1.0)
            assert (stop - start) / 100 > 0.8
            # The end comes in mid-call.
            await caller.send("say: This one is never heard to its end, because the call ends before it does.")
            await caller.until_audible(len(caller.heard), 30.0)
            await asyncio.to_thread(running.remember)
            running.process.send_signal(signal.SIGINT)
            status, said = await asyncio.to_thread(running.ended)
        assert status == 0, said
        assert not said


async def test_a_process_that_dies_ends_it_with_one_sentence(tmp_path: Path) -> None:
    with command(tmp_path, "--model", "fake") as running:
        facts = await asyncio.to_thread(running.facts)
        await asyncio.to_thread(running.remember)
        os.kill(facts["processes"]["engine"], signal.SIGKILL)
        status, said = await asyncio.to_thread(running.ended)
    assert status == 1
    assert said.startswith("livekit: engine ended with status -9")
    assert said.rstrip().endswith(f"all it said is in {tmp_path / 'engine.log'}")
    assert len(said.splitlines()) == 1


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with command(tmp_path, "--port", str(port)) as running:
            status, said = running.ended()
    assert status == 1
    assert said.startswith(f"livekit: LiveKit's port {port} cannot be used (Address already in use)")
    assert "--port" in said
    assert len(said.splitlines()) == 1


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with command(tmp_path, "--model", str(tmp_path / "nothing")) as running:
        status, said = running.ended(90.0)
    assert status == 1
    assert said.startswith("livekit: engine ended with status")
    assert "nothing" in said
    assert len(said.splitlines()) == 1
