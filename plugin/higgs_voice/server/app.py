"""`higgs-voice serve`: one engine, many sessions, over websockets and HTTP.

/v1/engine          websocket, the protocol of `wire.py` and docs/protocol.md
/v1/audio/speech    OpenAI's request for speech
/v1/voices          the operator's voices
/v1/models          the one model, in OpenAI's shape
/healthz /readyz    alive; ready for new sessions
/v1/load /metrics   0 … 1; Prometheus
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, MutableMapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from .. import heap, telemetry, wire
from .._version import __version__
from ..config import Sampling
from ..conversation.synthesizer import Synthesizer
from ..conversation.voice import Voice
from ..errors import (
    DependencyError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    HiggsVoiceError,
    ProtocolError,
    RefusedError,
    RemoteError,
    SettingsError,
    VoiceError,
)
from .hub import Bucket, Client, Hub, failure
from .settings import ServerSettings, is_loopback

try:
    import uvicorn
    from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, HTTPConnection
    from starlette.types import Receive, Scope, Send
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    from .counting import Counted
    from .metrics import Metrics
    from .speech import FORMATS, SpeechBody, as_events, check_speed, encoded
except ModuleNotFoundError as missing:
    raise DependencyError(
        f'the server needs {missing.name}, which is not installed; run: pip install "higgs-voice[server]"'
    ) from missing

log = logging.getLogger("higgs_voice.server")

_HELLO_S = 5.0
"""How long a connection may take to say who it is."""
_TRY_LATER = 1013
"""A close code of RFC 6455's registry: the client comes again."""
_MAX_FRAME = 8 * 2**20
"""Bytes of one websocket message: 30 s of clip are 2.9 MB."""
_MAX_BODY = 256 * 1024
_CLOSE_S = 2.5
"""How long a shutdown waits for what is on its way to connections. uvicorn, which ends what is left with a traceback, waits longer."""


class Line:
    """A websocket with a queue before it, so that nothing that sends ever waits. Streams bound what they queue by their
    windows, so a reader that does not read stops its own streams and nothing else."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._queue: asyncio.Queue[str | bytes | tuple[int, str]] = asyncio.Queue()
        self._writer = asyncio.get_running_loop().create_task(self._write())

    def send(self, data: str | bytes) -> None:
        self._queue.put_nowait(data)

    def close(self, code: int, reason: str) -> None:
        self._queue.put_nowait((code, reason))

    async def finish(self) -> None:
        """Send what is queued and end."""
        self._queue.put_nowait((1000, ""))
        await self._writer

    async def aclose(self) -> None:
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            while True:
                match await self._queue.get():
                    case str(text):
                        await self._socket.send_text(text)
                    case bytes(data):
                        await self._socket.send_bytes(data)
                    case (code, reason):
                        await self._socket.close(code, reason)
                        return


class App:
    """The ASGI application. The engine is started by whoever owns it."""

    def __init__(self, engine: Synthesizer, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics()
        self.hub = Hub(engine, settings, self.metrics)
        self.voices = self.hub.voices
        self.ready = False
        self._began = int(time.time())
        self._waiting: set[asyncio.Timeout] = set()
        """HTTP requests that have no sound yet."""
        self._rate = Bucket(settings.max_requests_per_minute, self.hub.clock)
        self._routes = FastAPI(
            title="higgs-voice", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
        )
        self._routes.add_api_websocket_route(wire.PATH, self.websocket)
        self._routes.add_api_route("/v1/audio/speech", self.speech, methods=["POST"], response_model=None)
        self._routes.add_api_route("/v1/voices", self.list_voices, methods=["GET"])
        self._routes.add_api_route("/v1/models", self.list_models, methods=["GET"])
        self._routes.add_api_route("/v1/load", self.load, methods=["GET"])
        self._routes.add_api_route("/metrics", self.prometheus, methods=["GET"])
        self._routes.add_api_route("/healthz", self.healthz, methods=["GET"])
        self._routes.add_api_route("/readyz", self.readyz, methods=["GET"])
        self._paths = {getattr(route, "path", None) for route in self._routes.routes}
        self._routes.add_exception_handler(HiggsVoiceError, self._on_error)  # type: ignore[arg-type]  # pyright: ignore
        self._routes.add_exception_handler(RequestValidationError, self._on_invalid)  # type: ignore[arg-type]  # pyright: ignore
        self._routes.add_exception_handler(HTTPException, self._on_status)  # type: ignore[arg-type]  # pyright: ignore
        self._routes.add_exception_handler(Exception, _on_break)

    # Who may come in

    def _refusal(self, request: HTTPConnection) -> tuple[int, str] | None:
        token = self.settings.token
        if token is not None:
            scheme, _, said = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(said.strip().encode(), token.encode()):
                return 401, "a bearer token is needed: Authorization: Bearer <the server's token>"
            return None
        # Without a token only programs on this machine may come in: no web page that a browser here has open, and none
        # that had a name of its own resolve to this machine.
        if "origin" in request.headers:
            return 403, "a server without a token takes no requests from web pages"
        if not is_loopback(host := _host(request.headers.get("host", ""))):
            return 403, f"a server without a token is not reached as {host!r}; use 127.0.0.1"
        return None

    def _refused(self, request: HTTPConnection, why: str) -> None:
        """Count a refusal and log it, without what was asked for."""
        self.metrics.refusals.labels(why).inc()
        peer = request.client.host if request.client else None
        telemetry.event(log, "refused", level=logging.WARNING, client=peer, why=why, path=request.url.path)

    def _http_refusal(self, request: HTTPConnection) -> Response | None:
        path = request.url.path
        if path.removesuffix("/") not in self._paths:  # scanners find many such: they count nowhere, and leave no line
            return _json_error(404, f"{request.scope['method']} {path}: Not Found")
        if path not in ("/healthz", "/readyz") and (refusal := self._refusal(request)) is not None:
            self._refused(request, "token")
            return _json_error(*refusal)
        if request.scope["method"] == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdigit() or int(length) > _MAX_BODY:
                self._refused(request, "request")
                return _json_error(413, f"a request needs a Content-Length of at most {_MAX_BODY} bytes")
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: the door, then the routes."""
        if scope["type"] == "http" and (refusal := self._http_refusal(HTTPConnection(scope))) is not None:
            await refusal(scope, receive, send)
        else:
            await self._routes(scope, receive, send)

    # Routes

    async def healthz(self) -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    async def readyz(self) -> Response:
        ready = self.ready and not self.hub.draining and self.hub.failure is None
        return JSONResponse({"ready": ready, "draining": self.hub.draining}, 200 if ready else 503)

    async def load(self) -> dict[str, float]:
        hub = self.hub
        load = hub.load if self.ready else 1.0
        return {"load": load, "sessions": hub.sessions, "streams": hub.streams + hub.http_streams}

    async def prometheus(self) -> Response:
        self.hub.measure()
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_voices(self) -> dict[str, Any]:
        names = await asyncio.to_thread(self.voices.names)
        return {"object": "list", "data": [{"id": name, "object": "voice"} for name in names]}

    async def list_models(self) -> dict[str, Any]:
        if not self.ready:
            raise EngineClosedError("the server is loading its engine; try again")
        model = {"id": self.engine.info.model, "object": "model", "created": self._began, "owned_by": "higgs-voice"}
        return {"object": "list", "data": [model]}

    async def speech(self, request: Request, body: SpeechBody) -> Response:
        check_speed(body.speed)
        size = len(body.input) + len(body.instructions or "")  # the model reads both before it speaks
        if size > self.settings.max_text:
            what = "the input and the instructions have" if body.instructions else "the input has"
            raise RefusedError(f"{what} {size} characters; this server takes {self.settings.max_text}")
        if not body.input.strip():
            raise RefusedError("the input is blank")
        voice = await self.voices.get(body.voice)
        if not self.ready or self.hub.draining:
            self._refused(request, "draining" if self.hub.draining else "loading")
            raise EngineClosedError(
                f"the server {'is shutting down' if self.hub.draining else 'is loading its engine'}; try again"
            )
        if body.instructions and not voice.speakers:
            voice = Voice.create(
                name=voice.name, scene=voice.scene, speakers=body.instructions, references=voice.references
            )
        if self.hub.http_streams >= self.settings.max_http_streams:
            self._refused(request, "http")
            raise EngineBusyError(
                f"{self.settings.max_http_streams} requests are being spoken, which is the server's limit"
            )
        if not self._rate.take():
            self._refused(request, "rate")
            raise EngineBusyError(
                f"more than {self.settings.max_requests_per_minute} requests a minute, the server's limit"
            )
        sound = self._spoken(request, body, voice)
        self.hub.http_streams += 1
        try:
            first = await self._first(sound)
            pieces = encoded(_again(first, sound), body.response_format)
        except BaseException:
            self._answered()
            raise
        if body.stream_format == "sse":
            return _Stream(as_events(pieces), "text/event-stream", self.settings.stall_s, self._answered)
        return _Stream(pieces, FORMATS[body.response_format], self.settings.stall_s, self._answered)

    async def _first(self, sound: AsyncGenerator[bytes]) -> bytes:
        """The first sound: what goes wrong before it still has a status, also that the server ends."""
        waiting = asyncio.timeout(None)
        self._waiting.add(waiting)
        try:
            async with waiting:
                return await anext(sound)
        except StopAsyncIteration:
            raise RefusedError("the input holds nothing that can be spoken") from None
        except TimeoutError:
            if not waiting.expired():
                raise
            raise EngineClosedError("the server is shutting down; try again") from None
        finally:
            self._waiting.discard(waiting)

    def _answered(self) -> None:
        self.hub.http_streams -= 1
        self.hub.note_activity()

    def refuse_waiting(self) -> None:
        """Answer those who have no sound yet: the server ends."""
        for waiting in self._waiting:
            waiting.reschedule(asyncio.get_running_loop().time())

    async def _spoken(self, request: Request, body: SpeechBody, voice: Voice) -> AsyncGenerator[bytes]:
        from ..conversation.session import SessionSettings, VoiceSession

        settings = SessionSettings(
            sampling=Sampling(seed=body.seed),
            run_ahead_s=2.0,
            speech_rate=body.speed,
            log_text=self.settings.log_text,
        )
        session = VoiceSession(Counted(self.engine, self.metrics, self.hub.clock), voice=voice, settings=settings)
        try:
            await session.start()
            self.voices.keep(voice, session.voice)
            async with aclosing(session.speak(body.input).audio()) as audio:
                async for chunk in audio:
                    yield chunk.pcm
        except (GeneratorExit, asyncio.CancelledError):  # the caller hung up
            self.metrics.interruptions.inc()
            raise
        except EngineBusyError:
            self._refused(request, "capacity")
            raise
        finally:
            await session.aclose()

    async def websocket(self, socket: WebSocket) -> None:
        if (refusal := self._refusal(socket)) is not None:
            self._refused(socket, "token")
            await socket.send_denial_response(_json_error(*refusal))
            return
        if wire.SUBPROTOCOL not in socket.scope.get("subprotocols", []):
            self._refused(socket, "protocol")
            await socket.send_denial_response(
                _json_error(400, f"the websocket must ask for subprotocol {wire.SUBPROTOCOL}")
            )
            return
        await socket.accept(wire.SUBPROTOCOL)
        if not self.ready:
            await socket.close(_TRY_LATER, "the engine is not ready; try again")
            return
        line = Line(socket)
        client: Client | None = None
        for_good = False
        try:
            client = self.hub.join(await _hello(socket), line)
            for_good = await self._serve(socket, client)
        except (ProtocolError, RefusedError, EngineBusyError) as error:
            for_good = True
            if isinstance(error, ProtocolError):
                self._refused(socket, "protocol")
            line.send(wire.dump(wire.Refusal(failure=failure(error))))
            line.close(wire.CLOSE_PROTOCOL if isinstance(error, ProtocolError) else wire.CLOSE_REFUSED, _brief(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(line.finish(), 2.0)
        except WebSocketDisconnect:
            pass
        finally:
            await line.aclose()
            if client is not None:
                self.hub.leave(client, line, for_good=for_good)

    async def _on_error(self, request: Request, error: HiggsVoiceError) -> Response:
        match error:
            case EngineBusyError():  # counted where it came from
                return _json_error(429, str(error), "rate_limit_error")
            case RefusedError() | VoiceError() | SettingsError():
                self._refused(request, "request")
                return _json_error(400, str(error))
            case EngineError() | RemoteError():
                return _json_error(503, str(error), "server_error")
            case _:
                return _json_error(500, str(error), "server_error")

    async def _on_status(self, request: Request, error: HTTPException) -> Response:
        """What the routes themselves refuse: no such method, a body that is no text."""
        if error.status_code != 404:
            self._refused(request, "request")
        answer = _json_error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        answer.headers.update(error.headers or {})
        return answer

    async def _on_invalid(self, request: Request, error: RequestValidationError) -> Response:
        self._refused(request, "request")
        item = error.errors()[0]
        if item["type"] == "json_invalid":
            why = item.get("ctx", {}).get("error", item["msg"])
            return _json_error(400, f"the body is no JSON: {why} (character {item['loc'][-1]})")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if item["loc"] == ("body",) and kind != "application/json" and not kind.endswith("+json"):
            return _json_error(400, f"the body is {kind or 'of no type'}; send Content-Type: application/json")
        where = ".".join(str(part) for part in item["loc"] if part != "body") or "body"
        return _json_error(400, f"{where}: {item['msg']}")

    async def _serve(self, socket: WebSocket, client: Client) -> bool:
        """Feed the hub until the line ends; whether the client said goodbye."""
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return message.get("code") == 1000
            if (data := message.get("bytes")) is not None:
                client.receive_frame(wire.unpack(data))
            else:
                client.receive(wire.parse_client(message.get("text") or ""))


async def _hello(socket: WebSocket) -> wire.Hello:
    try:
        text = await asyncio.wait_for(socket.receive_text(), _HELLO_S)
    except TimeoutError:
        raise ProtocolError(f"the client did not say hello within {_HELLO_S:.0f} s") from None
    except KeyError:
        raise ProtocolError("the client began with a binary message, not with 'hello'") from None
    hello = wire.parse_client(text)
    if not isinstance(hello, wire.Hello):
        raise ProtocolError(f"the client began with {hello.type!r}, not with 'hello'")
    return hello


async def _again(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _brief(error: HiggsVoiceError) -> str:
    return str(error).encode()[:120].decode("utf-8", "ignore")


def _json_error(status: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
    """An error in OpenAI's shape."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}.get(status)
    return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)


async def _on_break(_: Request, error: Exception) -> Response:
    """What nobody has foreseen; its traceback is logged by whoever called the application."""
    return _json_error(500, f"the server broke: {type(error).__name__}", "server_error")


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:\s]+))(?::\d{1,5})?", re.ASCII | re.IGNORECASE)


def _host(header: str) -> str:
    """The name or address in a Host header, without its port; empty where it is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]) if found is not None else ""


class _Stream(StreamingResponse):
    """Ends its generator, and with it the speech, when the caller hangs up, or has taken nothing for `stall_s`."""

    def __init__(
        self, content: AsyncGenerator[bytes], media_type: str, stall_s: float, on_end: Callable[[], None]
    ) -> None:
        super().__init__(content, media_type=media_type)
        self._stall_s = stall_s
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stalled = False

        async def in_time(message: MutableMapping[str, Any]) -> None:
            nonlocal stalled
            try:
                await asyncio.wait_for(send(message), self._stall_s)
            except TimeoutError:
                stalled = True
                raise

        try:
            await super().__call__(scope, receive, in_time)
        except (ClientDisconnect, TimeoutError):
            if not stalled:
                raise
            peer = scope["client"][0] if scope.get("client") else None
            telemetry.event(log, "client left", level=logging.WARNING, client=peer, why="stalled")
        finally:
            try:
                if isinstance(self.body_iterator, AsyncGenerator):
                    await self.body_iterator.aclose()
            finally:
                self._on_end()


class _Websocket(WebSocketsSansIOProtocol):
    """uvicorn's, but a peer that does not answer a ping is gone: closing waits until what is buffered has been sent, which
    a peer that reads nothing, or whose network is away, never lets happen."""

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: `Server` decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def hang_up(self, *, on_all: bool) -> None:
        """Drop the connections whose HTTP answer has begun and is not at its end, or with `on_all` whoever is left. A caller
        sees that its answer is cut: the end of a chunked body does not come."""
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)  # none: a websocket, or nothing has been asked yet
            if on_all or (cycle is not None and cycle.response_started and not cycle.response_complete):
                connection.transport.abort()


class Server:
    """A server in this event loop. The caller owns the engine and closes it afterwards."""

    def __init__(self, engine: Synthesizer, settings: ServerSettings | None = None) -> None:
        self.settings = settings or ServerSettings()
        self._app = App(engine, self.settings)
        self._engine = engine
        self._uvicorn: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None
        self._sockets: list[socket.socket] = []

    @property
    def hub(self) -> Hub:
        return self._app.hub

    @property
    def metrics(self) -> Metrics:
        return self._app.metrics

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::", "localhost") else self.settings.host
        return f"ws://[{host}]:{self.port}" if ":" in host else f"ws://{host}:{self.port}"

    async def start(self) -> None:
        """Bind, start the engine, take connections. `/healthz` answers while the engine loads. Errors: `SettingsError`."""
        self._sockets = [_bind(self.settings.host, self.settings.port)]
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws=_Websocket,
            ws_max_size=_MAX_FRAME,
            ws_ping_interval=self.settings.ping_s,
            ws_ping_timeout=self.settings.ping_s,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=3,
        )
        self._uvicorn = _Uvicorn(config)
        self._task = asyncio.get_running_loop().create_task(self._uvicorn.serve(self._sockets), name="higgs-voice http")
        try:
            await self._engine.start()
        except BaseException:
            await self.aclose()
            raise
        self._app.ready = True
        telemetry.event(log, "ready", url=self.url, model=self._engine.info.model)

    async def drain(self) -> None:
        """Refuse new sessions and wait for what is being said."""
        await self._app.hub.drain()

    async def aclose(self) -> None:
        """End every connection and stop listening; idempotent."""
        self._app.ready = False
        self._app.refuse_waiting()
        if self._uvicorn is not None:
            self._uvicorn.hang_up(on_all=False)
        await self._app.hub.aclose()
        if self._uvicorn is not None and self._task is not None:
            self._uvicorn.should_exit = True
            await asyncio.wait([self._task], timeout=_CLOSE_S)
            self._uvicorn.hang_up(on_all=True)
            await asyncio.gather(self._task, return_exceptions=True)
        for item in self._sockets:
            item.close()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sends small messages at once (TCP_NODELAY) only where the protocol is named. Otherwise a chunk's second message
        # waits until the first one is acknowledged, for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port"
        ) from error
    return listener


async def run(
    engine: Synthesizer, settings: ServerSettings, *, on_ready: Callable[[Server], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM: the first one drains, or ends an engine that is still loading, the second one ends at once.

    Errors: those of `Server.start`; `EngineDiedError` once the engine speaks nothing more.
    """
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        stopped = await _run(Server(engine, settings), first, second, on_ready)
    finally:
        await engine.aclose()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    telemetry.event(log, "stopped", **stopped)


async def _run(
    server: Server, first: asyncio.Event, second: asyncio.Event, on_ready: Callable[[Server], None] | None
) -> dict[str, Any]:
    """Serve until the first event and drain until the second; what the log says of how it stopped."""
    starting = asyncio.get_running_loop().create_task(server.start())
    await _either(starting, first.wait())
    if starting.cancelled():
        return {"reason": "a signal came while the engine was loading"}
    starting.result()
    hub = server.hub
    try:
        if on_ready is not None:
            on_ready(server)
        with heap.settled():
            await _either(first.wait(), hub.failed())
            if not first.is_set() and hub.failure is not None:
                raise hub.failure  # whoever supervises this process starts another one
            telemetry.event(
                log,
                "draining",
                sessions=hub.sessions,
                http=hub.http_streams,
                drain_s=server.settings.drain_s,
                second_signal="ends at once",
            )
            await _either(server.drain(), second.wait())
            reason = "a second signal came" if second.is_set() else hub.drained
            return {"reason": reason, "sessions": hub.sessions, "http": hub.http_streams}
    finally:
        await server.aclose()


async def _either(*works: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    """Wait until one of them ends; the others are cancelled."""
    tasks = {asyncio.ensure_future(work) for work in works}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def serve(
    model: str = "nano",
    *,
    host: str = "127.0.0.1",
    port: int = wire.DEFAULT_PORT,
    token: str | None = None,
    voices: str | Path | None = None,
    engine_options: dict[str, Any] | None = None,
    on_loading: Callable[[], None] | None = None,
    on_ready: Callable[[Server], None] | None = None,
    **limits: Any,
) -> None:
    """Serve `model` until a signal; what `higgs-voice serve` does. `limits` are the other fields of `ServerSettings`.

    Errors: `SettingsError`, `DependencyError`, `ModelError`.
    """
    from ..backends import create_backend

    folder = Path(voices) if voices is not None else None
    settings = ServerSettings(host=host, port=port, token=token, voices=folder, **limits)
    _bind(host, port).close()  # a port that is taken is said before the engine's libraries are loaded
    if on_loading is not None:
        on_loading()
    engine = create_backend(model, **(engine_options or {}))
    asyncio.run(run(engine, settings, on_ready=on_ready))


__all__ = ["App", "Server", "ServerSettings", "run", "serve"]
