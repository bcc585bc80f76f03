"""Stops, closed sessions and breaks that come at the worst moment: nothing of them stays in the server or in the engine."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from higgs_voice import Reference, Voice, VoiceSession, wire
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.config import Sampling
from higgs_voice.conversation.synthesizer import ContextSpec, Exchange, SpeakRequest, SpeechEvent
from higgs_voice.errors import EngineDiedError, RefusedError
from higgs_voice.server import hub as hub_module
from higgs_voice.server.app import Server, ServerSettings, run
from tests.backends.conformance import LONG, collect, request
from tests.server.proxy import until
from tests.server.test_app import http, line, serving


class Sessions(FakeSynthesizer):
    """Knows which sessions are open, and hears of a chunk `late` turns of the loop after it was asked."""

    def __init__(self, late: int = 0, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.open: set[str] = set()
        self._late = late

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        for _ in range(self._late):
            await asyncio.sleep(0)
        self.open.add(request.session_id)
        async for event in super().speak(request):
            yield event

    def close_session(self, session_id: str) -> None:
        super().close_session(session_id)
        self.open.discard(session_id)


def speak(stream: int, session: str = "s", *, text: str = LONG, window: int = 10**9) -> str:
    context = wire.ContextRef(
        system=None, scene=None, speakers=(), references=(), references_in_scene=False, exchanges=()
    )
    return wire.dump(
        wire.Speak(
            stream=stream,
            session=session,
            speech=f"speech {stream}",
            context=context,
            text=text,
            sampling=Sampling(seed=1),
            window=window,
        )
    )


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_stop_right_behind_its_chunk_is_not_lost(turns: int) -> None:
    engine = Sessions(late=5)
    async with serving(engine) as server, line(server):
        (client,) = server.hub.clients.values()
        client.receive(wire.parse_client(speak(1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        client.receive(wire.Stop(stream=1))
        await until(lambda: not client.tasks)
        assert engine.steps <= 5  # one event of sound, from which the engine is told again
        assert turns or not engine.requests
        assert not client.streams


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_session_closed_right_behind_its_chunk_does_not_stay_in_the_engine(turns: int) -> None:
    engine = Sessions(late=5)
    async with serving(engine) as server, line(server):
        (client,) = server.hub.clients.values()
        client.receive(wire.parse_client(speak(1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        client.receive(wire.CloseSession(session="s"))
        await until(lambda: not client.tasks)
        assert not engine.open
        assert engine.steps <= 5
        assert not client.streams
        assert server.hub.sessions == 0


async def test_closing_a_session_ends_a_stream_that_waits_for_its_listener() -> None:
    async with serving() as server, line(server) as socket:
        await socket.send(speak(1, window=4800))
        await until(lambda: server.hub.streams == 1)
        await asyncio.sleep(0.05)
        assert server.hub.streams == 1  # the window is full
        await socket.send(wire.dump(wire.CloseSession(session="s")))
        await until(lambda: server.hub.streams == 0)
        (client,) = server.hub.clients.values()
        await until(lambda: len(client.tasks) == 0)


async def test_a_client_that_reads_nothing_and_answers_no_ping_is_dropped() -> None:
    """Its buffers are full, so that a polite close would wait for it for ever."""
    async with serving(FakeSynthesizer(frames_per_char=50), ping_s=0.2, grace_s=0.0) as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            stalled.setblocking(False)
            await loop.sock_connect(stalled, ("127.0.0.1", server.port))
            head = (
                f"GET {wire.PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Protocol: {wire.SUBPROTOCOL}\r\n\r\n"
            )
            await loop.sock_sendall(stalled, head.encode())
            assert b" 101 " in await loop.sock_recv(stalled, 1000)
            await loop.sock_sendall(stalled, _masked(wire.dump(wire.Hello(version=wire.VERSION, client="0" * 32))))
            for number in range(5):  # 30 s of sound each: more than the kernel takes in
                await loop.sock_sendall(stalled, _masked(speak(number, f"s{number}")))
            await until(lambda: bool(server.hub.clients))
            await until(lambda: not server.hub.clients, timeout=3)


def _masked(text: str) -> bytes:
    """A client's text message, under a mask of zeros."""
    data = text.encode()
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


async def test_a_clip_that_breaks_the_engine_is_answered() -> None:
    class Broken(FakeSynthesizer):
        async def encode(self, pcm: np.ndarray) -> np.ndarray:
            raise RuntimeError("the device is on fire")

    async with serving(Broken()) as server:
        client = RemoteSynthesizer(server.url)
        voice = Voice(references=(Reference("Hi.", np.full(24000, 0.1, np.float32)),))
        with pytest.raises(EngineDiedError, match="RuntimeError: the device is on fire"):
            await VoiceSession(client, voice=voice).start()
        await collect(client, request())
        await client.aclose()


async def test_who_comes_while_the_engine_loads_comes_again_and_leaves_nothing() -> None:
    loaded = asyncio.Event()

    class Slow(FakeSynthesizer):
        async def start(self) -> None:
            await loaded.wait()

    server = Server(Slow(), ServerSettings(port=0, max_connections=1))
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    with pytest.raises(ConnectionClosed, match="not ready"):
        async with line(server):
            pass
    assert not server.hub.clients
    client = RemoteSynthesizer(server.url, connect_timeout_s=20)
    joining = asyncio.ensure_future(client.start())
    await asyncio.sleep(0.1)
    assert not joining.done()
    loaded.set()
    await asyncio.gather(starting, joining)
    assert len(server.hub.clients) == 1
    await client.aclose()
    await server.aclose()


async def test_a_context_that_the_engine_cannot_hold_is_refused() -> None:
    engine = FakeSynthesizer(max_positions=100)
    exchange = Exchange("Said before.", engine.codes_for("x", 60))
    full = ContextSpec(exchanges=(exchange, exchange))
    async with serving(engine) as server:
        client = RemoteSynthesizer(server.url)
        await client.start()
        with pytest.raises(RefusedError, match="120 frames; this server's engine takes 100"):
            await collect(client, request(context=full))
        client.prepare("s", full)
        await collect(client, request(context=replace(full, exchanges=(exchange,))))
        assert not engine.prepared
        await client.aclose()


async def test_a_store_too_small_for_one_context_is_said() -> None:
    engine = FakeSynthesizer()
    context = ContextSpec(exchanges=tuple(Exchange(f"Number {n}.", engine.codes_for(str(n), 100)) for n in range(3)))
    async with serving(engine, max_store_mb=0.002) as server:
        client = RemoteSynthesizer(server.url)
        with pytest.raises(RefusedError, match="max_store_mb"):
            await collect(client, request(context=context))
        await collect(client, request())
        await client.aclose()


async def test_an_engine_that_has_failed_is_not_ready_and_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal(FakeSynthesizer):
        failure: EngineDiedError | None = None

    monkeypatch.setattr(hub_module, "_LOOK_S", 0.01)
    engine = Mortal()
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(run(engine, ServerSettings(port=0), on_ready=ready.set_result))
    server = await ready
    async with http(server) as web:
        assert (await web.get("/readyz")).status_code == 200
        monkeypatch.setattr(hub_module, "_LOOK_S", 1000)
        await asyncio.sleep(0.05)
        engine.failure = EngineDiedError("the engine's worker failed: it is dead")
        assert (await web.get("/readyz")).status_code == 503
        assert (await web.get("/v1/load")).json()["load"] == 1.0
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)

    monkeypatch.setattr(hub_module, "_LOOK_S", 0.01)
    with pytest.raises(EngineDiedError, match="it is dead"):
        await asyncio.wait_for(run(engine, ServerSettings(port=0)), 10)


async def test_a_signal_while_the_engine_loads_ends_the_server() -> None:
    class Slow(FakeSynthesizer):
        closed = False

        async def start(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            self.closed = True

    engine = Slow()
    await asyncio.wait_for(run(engine, ServerSettings(port=0)), 10)
    assert engine.closed


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What a server and its web server log in this test."""
    for name in ("higgs_voice", "uvicorn"):
        caplog.set_level(logging.INFO, name)
    return caplog


async def test_a_shutdown_hangs_up_on_http_callers_and_says_how_many(logged: pytest.LogCaptureFixture) -> None:
    """One is read to, one does not read, one waits for its first sound."""
    held = asyncio.Event()

    async def pace(request: SpeakRequest, _: int) -> None:
        await (held.wait() if "Wait" in request.text else asyncio.sleep(0.005))

    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    engine = FakeSynthesizer(frames_per_char=50, pace=pace)
    running = asyncio.ensure_future(run(engine, ServerSettings(port=0, drain_s=0.3), on_ready=ready.set_result))
    server = await ready
    async with http(server) as client:
        with socket.socket() as slow:
            await ask_and_read_nothing(slow, server)
            waiting = asyncio.ensure_future(client.post("/v1/audio/speech", json={"input": "Wait."}))
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                async with client.stream("POST", "/v1/audio/speech", json={"input": LONG}) as answer:
                    pieces = answer.aiter_bytes()
                    await anext(pieces)
                    await until(lambda: server.hub.http_streams == 3)
                    os.kill(os.getpid(), signal.SIGTERM)
                    async for _ in pieces:
                        pass
            refused = await waiting
            await asyncio.wait_for(running, 2)
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]["message"]
    assert not server.hub.http_streams
    assert not [line for line in logged.records if line.levelno >= logging.ERROR]
    assert logged.messages[-1] == 'stopped reason="drain_s (0.3) was over" sessions=0 http=3'


async def test_a_shutdown_leaves_an_answer_its_end(logged: pytest.LogCaptureFixture) -> None:
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    engine = FakeSynthesizer(pace=lambda _, __: asyncio.sleep(0.005))
    running = asyncio.ensure_future(run(engine, ServerSettings(port=0), on_ready=ready.set_result))
    server = await ready
    async with http(server) as client:
        asked = asyncio.ensure_future(client.post("/v1/audio/speech", json={"input": LONG, "seed": 1}))
        await until(lambda: server.hub.http_streams == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len((await asked).content) > 48000
    await asyncio.wait_for(running, 5)
    assert not [line for line in logged.records if line.levelno >= logging.ERROR]
    assert logged.messages[-1] == 'stopped reason="no session was left" sessions=0 http=0'


async def ask_and_read_nothing(caller: socket.socket, server: Server) -> None:
    loop = asyncio.get_running_loop()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    caller.setblocking(False)
    await loop.sock_connect(caller, ("127.0.0.1", server.port))
    body = json.dumps({"input": LONG * 20, "response_format": "pcm"})
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(caller, (head + body).encode())
