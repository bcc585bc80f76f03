"""What holds for every test: no network beyond this machine, no model hub, no more threads than a test needs."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

# Set before any test module imports torch or transformers, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The embedded model is too small to gain from more threads; they only take time from tests with a media loop.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A server of the developer's own must not turn local tests into remote ones.
for _name in [name for name in os.environ if name.startswith(("HIGGS_VOICE_", "LIVEKIT_"))]:
    del os.environ[_name]


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to another machine fails the test that does it."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(sock: socket.socket, address: Any) -> None:
        # A datagram socket's connect sends nothing; libraries use it to learn the machine's own address.
        if sock.type == socket.SOCK_STREAM and not _is_local(address):
            raise AssertionError(f"a test tried to connect to {address!r}; tests stay on this machine")
        return connect(sock, address)

    def guarded_ex(sock: socket.socket, address: Any) -> int:
        if sock.type == socket.SOCK_STREAM and not _is_local(address):
            raise AssertionError(f"a test tried to connect to {address!r}; tests stay on this machine")
        return connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that sends log lines somewhere does so within its test."""
    loggers = [logging.getLogger(name) for name in ("higgs_voice", "uvicorn")]
    before = [(log.handlers[:], log.level, log.propagate) for log in loggers]
    yield
    for log, (handlers, level, propagate) in zip(loggers, before, strict=True):
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)
