"""An engine across a process boundary: the client of a `higgs-voice serve`.

The session stays here, with its context and what was heard; the server is asked one chunk at a time and its state is a cache.
So a line that breaks, a server that restarts and a hand-over to another server are one case: what is being read goes on with
the next frame where the server still has it. Otherwise another one is given the codes that were said, and goes on behind them at the
sample where it broke off. An engine that cannot do that says all of it again, by the same seed, and must say the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from .. import errors, wire
from .._version import __version__
from ..audio import SAMPLE_RATE
from ..conversation.presets import check_name
from ..conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    EngineInfo,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
)
from ..conversation.voice import Voice
from ..errors import (
    ConnectionLostError,
    EngineClosedError,
    HiggsVoiceError,
    ProtocolError,
    RefusedError,
    RemoteError,
    SettingsError,
)

log = logging.getLogger("higgs_voice.remote")

_RETRY_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Waits between attempts to connect; the last one repeats."""
_MAX_MESSAGE = 16 * 2**20
_MOST_ROUNDS = 5
"""A server that lacks a part of the context as often as this will never have it."""
_FrameT = TypeVar("_FrameT", wire.CodesFrame, wire.SoundFrame, wire.VoiceFrame)


@dataclass(slots=True, eq=False)
class _Stream:
    """One chunk that is being read."""

    number: int
    request: SpeakRequest
    events: deque[SpeechEvent] = field(default_factory=deque[SpeechEvent])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    error: HiggsVoiceError | None = None
    asked: bool = False
    ended: bool = False
    next_seq: int = 0
    """The server's next frame."""
    samples: int = 0
    """Received, from the chunk's first one."""
    taken: int = 0
    """Samples that the reader took."""
    told: int = 0
    """Samples that the server knows to be taken."""
    codes: list[Codes] = field(default_factory=list[Codes])
    frames: int = 0
    rounds: int = 0
    """How often this line was asked for it."""
    again: int = 0
    """Frames that the server has sent again since the chunk was asked again."""

    def give(self, event: SpeechEvent) -> None:
        self.events.append(event)
        self.changed.set()

    def end(self, error: HiggsVoiceError | None = None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error
            self.changed.set()


class RemoteSynthesizer:
    """A `Synthesizer` on the other side of a websocket.

    Args:
        url: ``ws://host:port`` or ``wss://…``; several (a list, or with commas) in the order they are to be tried, all with
            the same model. When the one in use is lost or shuts down, the next takes over. ``ws://token@host:port`` names a token of its own.
        token: the servers' bearer token.
        window_s: audio the server may send ahead of what was taken here.
        connect_timeout_s: how long `start` tries.
        grace_s: how long a broken line is mended before what waits for it fails.
        ping_s: a line that has not answered for this long, twice, is broken.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        token: str | None = None,
        window_s: float = 2.0,
        connect_timeout_s: float = 5.0,
        grace_s: float = 10.0,
        ping_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        urls = [part.strip() for item in ([url] if isinstance(url, str) else url) for part in item.split(",")]
        if not urls or not all(item.startswith(("ws://", "wss://")) for item in urls):
            raise SettingsError(f"a server is named ws://host:port or wss://host:port, not {url!r}")
        places = [_without_token(_checked(item).rstrip("/").removesuffix(wire.PATH)) for item in urls]
        self._urls = [item for item, _ in places]
        self._tokens = [own or (token or "").strip() or None for _, own in places]
        self._place = 0
        self._window_s = window_s
        self._connect_timeout_s = connect_timeout_s
        self._grace_s = grace_s
        self._ping_s = ping_s
        self._clock = clock
        self._id = secrets.token_hex(16)
        self._info: EngineInfo | None = None
        self._server: str | None = None
        self._max_text: int | None = None
        self._leaving = False
        self._line: ClientConnection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._outbox: deque[str | bytes] = deque()
        self._outbox_changed = asyncio.Event()
        self._ready = asyncio.Event()
        self._failure: HiggsVoiceError | None = None
        self._closing: asyncio.Task[None] | None = None
        self._streams: dict[int, _Stream] = {}
        self._answers: dict[int, tuple[str | bytes, asyncio.Future[wire.Frame]]] = {}
        self._sessions: set[str] = set()
        self._known: set[str] = set()
        self._digests: dict[int, tuple[Exchange, str]] = {}
        self._numbers = 0
        self._closed = False
        self.reconnections = 0
        """How often a broken line was mended."""

    # Synthesizer

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise ConnectionLostError("the server's engine is not known before start()")
        return self._info

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    @property
    def url(self) -> str:
        """The server in use, or to be tried next."""
        return self._urls[self._place]

    async def start(self) -> None:
        if self._closed:
            raise EngineClosedError("this client is closed")
        await self._connected(self._connect_timeout_s)

    async def aclose(self) -> None:
        self._closed = True
        for stream in list(self._streams.values()):
            stream.end(EngineClosedError("the client was closed while it spoke"))
        if self._line is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._line.close(1000), 2.0)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._fail(EngineClosedError("the client was closed"))
        self._sessions.clear()

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        if self._closed:
            raise EngineClosedError("this client is closed")
        for name in (request.session_id, request.speech_id):
            _check_id(name)
        if request.session_id not in self._sessions:
            self._move()  # a server that is shutting down takes no new sessions
        self._numbers += 1
        stream = _Stream(self._numbers, request)
        if request.spoken is not None:
            stream.codes.append(request.spoken)
            stream.frames = request.spoken_frames
            stream.samples = stream.taken = request.heard if request.pcm else self._samples(request.spoken)
        self._streams[stream.number] = stream
        self._sessions.add(request.session_id)
        try:
            await self._connected(self._grace_s, stream)
            if not stream.asked:
                self._ask(stream)
            async with aclosing(self._read(stream)) as events:
                async for event in events:
                    yield event
        finally:
            self._streams.pop(stream.number, None)
            if not stream.ended:
                stream.ended = True
                self._send(wire.Stop(stream=stream.number))
            self._move()

    def stop(self, speech_id: str) -> None:
        for stream in self._streams.values():
            if stream.request.speech_id == speech_id and not stream.ended:
                self._stop(stream)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        if not self._closed and self._ready.is_set():
            _check_id(session_id)
            self._sessions.add(session_id)
            self._send_exchanges(context)
            self._send(wire.Prepare(session=session_id, context=self._ref(context)))

    def close_session(self, session_id: str) -> None:
        for stream in self._streams.values():
            if stream.request.session_id == session_id and not stream.ended:
                self._stop(stream)
        if session_id in self._sessions:
            self._sessions.remove(session_id)
            self._send(wire.CloseSession(session=session_id))

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        if len(pcm) > self.info.max_clip_s * self.info.sample_rate:
            seconds = len(pcm) / self.info.sample_rate
            raise RefusedError(f"the clip is {seconds:.0f} s long; this server takes {self.info.max_clip_s:.0f} s")
        answer = await self._request(lambda number: wire.ClipFrame(number, pcm).pack(), wire.CodesFrame)
        self._check(answer.codes)
        return answer.codes

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        self._check(codes)
        seconds = codes.shape[1] / self.info.frame_rate
        most = (_MAX_MESSAGE - 1024) / 4 / self.info.sample_rate
        if seconds > most:
            raise RefusedError(f"{seconds:.0f} s of codes are more than a server sends decoded in one go, {most:.0f} s")
        return (await self._request(lambda number: wire.CodesFrame(number, codes).pack(), wire.SoundFrame)).samples

    async def voice(self, name: str) -> Voice:
        """One of the server's voices (`GET /v1/voices` lists them); its clips come as codes, their sound stays there.

        Errors: `RefusedError` for a name that the server does not have, with those that it has; `VoiceFileError`.
        """
        check_name(name)
        await self.start()
        answer = await self._request(
            lambda number: wire.dump(wire.VoiceRequest(request=number, name=name)), wire.VoiceFrame
        )
        voice = Voice.from_bytes(answer.data, source=f"voice {name!r} of the server at {self.url}")
        for reference in voice.references:
            if reference.codes is not None:
                self._check(reference.codes)
        return voice

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        """An upper bound: a token is at least one byte."""
        voice = context.voice
        items = (*voice.references, *context.exchanges)
        lines = (voice.system or "", voice.scene or "", *voice.speakers, text)
        more = self._info.num_codebooks + 20 if self._info else 28
        return (40 + sum(len(line.encode("utf-8", "replace")) + 4 for line in lines)) + sum(
            len(item.text.encode("utf-8", "replace")) + item.frames + more for item in items
        )

    # Reading

    async def _read(self, stream: _Stream) -> AsyncGenerator[SpeechEvent]:
        while True:
            while stream.events:
                event = stream.events.popleft()
                if isinstance(event, AudioEvent):
                    if stream.request.pcm:
                        stream.taken = event.start + len(event.pcm) // 2
                    else:
                        stream.taken += self._samples(event.codes)
                yield event
                self._acknowledge(stream)
            if stream.ended:
                if stream.error is not None:
                    raise stream.error
                return
            stream.changed.clear()
            await stream.changed.wait()

    def _acknowledge(self, stream: _Stream) -> None:
        if stream.ended:
            return
        if stream.taken - stream.told >= self._window // 4:
            stream.told = stream.taken
            self._send(wire.Ack(stream=stream.number, seq=stream.next_seq, samples=stream.taken))

    @property
    def _window(self) -> int:
        return int(self._window_s * (self._info.sample_rate if self._info else SAMPLE_RATE))

    def _samples(self, codes: Codes) -> int:
        """Samples that codes [K, n] stand for."""
        return codes.shape[1] * (self.info.sample_rate // self.info.frame_rate)

    def _stop(self, stream: _Stream) -> None:
        stream.events.clear()
        self._send(wire.Stop(stream=stream.number))
        stream.give(FinishedEvent(FinishReason.STOPPED, stream.frames))
        stream.end()

    # Asking

    def _ask(self, stream: _Stream) -> None:
        """Send a stream's request: at first, and again to a server that does not have it."""
        if stream.ended:
            return
        stream.asked = True
        stream.rounds += 1
        request = stream.request
        if self._max_text is not None and len(request.text) > self._max_text:
            sentence = f"the text has {len(request.text)} characters; this server takes {self._max_text} a chunk"
            stream.end(RefusedError(sentence))
            return
        if request.sampling.seed is None:  # so that asking again gives the same sound
            request = replace(request, sampling=request.sampling.replace(seed=secrets.randbits(31)))
            stream.request = request
        stream.next_seq = 0
        stream.again = 0
        spoken: Exchange | None = None
        if stream.frames and self.info.continues:  # it goes on; another one must say all of it again
            spoken = Exchange("", np.concatenate(stream.codes, axis=1))
            stream.again = stream.frames
            self._send_exchange(spoken)
        self._send_exchanges(request.context)
        if request.next_context is not None:
            self._send_exchanges(request.next_context)
        self._send(
            wire.Speak(
                stream=stream.number,
                session=request.session_id,
                speech=request.speech_id,
                context=self._ref(request.context),
                text=_plain(request.text),
                sampling=request.sampling,
                next_context=self._ref(request.next_context) if request.next_context is not None else None,
                window=self._window,
                pcm=request.pcm,
                spoken=self._digest(spoken) if spoken is not None else None,
                heard=stream.samples if spoken is not None and request.pcm else 0,
            )
        )
        if stream.taken:
            stream.told = stream.taken
            self._send(wire.Ack(stream=stream.number, seq=0, samples=stream.taken))

    def _send(self, message: wire.Message) -> None:
        """Queue for the line that is open; without one, `_join` says what still matters."""
        if self._ready.is_set():
            self._outbox.append(wire.dump(message))
            self._outbox_changed.set()

    def _send_exchanges(self, context: ContextSpec) -> None:
        for exchange in (*context.voice.references, *context.exchanges):
            self._send_exchange(exchange)

    def _send_exchange(self, exchange: Exchange) -> None:
        name = self._digest(exchange)
        if name not in self._known and self._ready.is_set():
            if len(self._known) > 65536:
                self._known.clear()
            self._known.add(name)
            self._outbox.append(wire.ExchangeFrame(_plain(exchange.text), exchange.codes).pack())
            self._outbox_changed.set()

    def _ref(self, context: ContextSpec) -> wire.ContextRef:
        voice = context.voice
        return wire.ContextRef(
            system=None if voice.system is None else _plain(voice.system),
            scene=None if voice.scene is None else _plain(voice.scene),
            speakers=tuple(_plain(line) for line in voice.speakers),
            references=tuple(self._digest(item) for item in voice.references),
            references_in_scene=voice.references_in_scene,
            exchanges=tuple(self._digest(item) for item in context.exchanges),
        )

    def _digest(self, exchange: Exchange) -> str:
        known = self._digests.get(id(exchange))
        if known is None or known[0] is not exchange:
            if len(self._digests) > 1024:  # holds the exchanges, so that their ids are not used again
                self._digests.clear()
            known = self._digests[id(exchange)] = (exchange, wire.digest(_plain(exchange.text), exchange.codes))
        return known[1]

    async def _request(self, message: Callable[[int], str | bytes], kind: type[_FrameT]) -> _FrameT:
        if self._closed:
            raise EngineClosedError("this client is closed")
        await self._connected(self._grace_s)
        self._numbers += 1
        number = self._numbers
        data = message(number)
        future: asyncio.Future[wire.Frame] = asyncio.get_running_loop().create_future()
        self._answers[number] = (data, future)
        self._outbox.append(data)
        self._outbox_changed.set()
        try:
            answer = await future
        finally:
            self._answers.pop(number, None)
        if not isinstance(answer, kind):
            raise ProtocolError(f"the server answered with a {type(answer).__name__}, not with a {kind.__name__}")
        return answer

    # The line

    async def _connected(self, timeout_s: float, stream: _Stream | None = None) -> None:
        """Wait for an open line, and see to it that one is being made; a stream that is stopped meanwhile does not wait.
        Errors: `RemoteError`."""
        if self._ready.is_set():
            return
        if self._keeper is None or self._keeper.done():
            self._failure = None
            self._keeper = asyncio.get_running_loop().create_task(self._keep(timeout_s), name="higgs-voice line")
        waits = [asyncio.ensure_future(self._ready.wait())]
        if stream is not None:
            waits.append(asyncio.ensure_future(stream.changed.wait()))
        try:
            await asyncio.wait({*waits, self._keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._ready.is_set() and not (stream is not None and stream.ended):
            raise self._failure or EngineClosedError("this client is closed")

    def _move(self) -> None:
        """Leave a server that is shutting down for another one, between two chunks."""
        if (
            self._leaving
            and len(self._urls) > 1
            and not self._streams
            and self._line is not None
            and self._ready.is_set()
        ):
            self._ready.clear()
            self._closing = asyncio.get_running_loop().create_task(self._line.close(1000))

    async def _keep(self, timeout_s: float) -> None:
        """Connect, serve the line until it breaks, connect again; end when that fails for too long."""
        since = self._clock()
        attempt = 0
        reason = "no answer"
        while not self._closed:
            try:
                await self._serve_line()
            except (HiggsVoiceError, InvalidURI) as error:  # trying again would not help
                if attempt >= len(self._urls) - 1:
                    return self._fail(error if isinstance(error, HiggsVoiceError) else SettingsError(str(error)))
                reason = str(error)
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                reason = str(error) or type(error).__name__
            except Exception as error:
                log.exception("the client broke")
                return self._fail(RemoteError(f"the client broke: {type(error).__name__}: {error}"))
            else:
                since, timeout_s, attempt, reason = self._clock(), self._grace_s, 0, "the line broke"
                if self._leaving and len(self._urls) > 1:
                    self._place = (self._place + 1) % len(self._urls)
                    continue
            self._line = None
            waited = self._clock() - since
            if waited >= timeout_s:
                where = " or ".join(self._urls)
                sentence = f"no higgs-voice server at {where} for {waited:.1f} s ({reason})"
                return self._fail(ConnectionLostError(f"{sentence}; start one with `higgs-voice serve`"))
            pause = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
            await asyncio.sleep(min(pause, timeout_s - waited))
            if attempt or reason != "the line broke":
                self._place = (self._place + 1) % len(self._urls)
            attempt += 1
        return None

    async def _serve_line(self) -> None:
        """One connection from its opening to its end. Returns when it broke after it had been open."""
        url = self._urls[self._place] + wire.PATH
        token = self._tokens[self._place]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            line = await asyncio.wait_for(
                connect(
                    url,
                    additional_headers=headers,
                    subprotocols=[wire.SUBPROTOCOL],  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
                    compression=None,
                    max_size=_MAX_MESSAGE,
                    ping_interval=self._ping_s,
                    ping_timeout=self._ping_s,
                    close_timeout=1.0,
                    proxy=None,
                ),
                self._connect_timeout_s,
            )
        except InvalidStatus as error:
            raise _refusal(error, self._urls[self._place]) from error
        async with line:
            hello = wire.Hello(
                version=wire.VERSION,
                client=self._id,
                software=f"higgs-voice/{__version__}",
                server=self._server or "",
                sessions=tuple(self._sessions),
                streams={item.number: item.next_seq for item in self._streams.values() if not item.ended},
            )
            await line.send(wire.dump(hello))
            first = wire.parse_server(str(await asyncio.wait_for(line.recv(), self._connect_timeout_s)))
            if isinstance(first, wire.Refusal):
                raise _error(first.failure)
            if not isinstance(first, wire.Welcome):
                raise ProtocolError(f"the server began with {first.type!r}, not with 'welcome'")
            self._line = line
            self._join(first)
            writer = asyncio.get_running_loop().create_task(self._write(line), name="higgs-voice writer")
            try:
                async for data in line:
                    self._receive(data)
            except ConnectionClosed as closed:
                end = closed.rcvd or closed.sent
                code = end.code if end is not None else 1006
                if code in wire.FINAL_CODES or code == 1009:
                    said = end.reason if end is not None else ""
                    raise RefusedError(f"the server closed the line: {said or code}") from closed
            finally:
                self._ready.clear()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    def _join(self, welcome: wire.Welcome) -> None:
        """Take up everything on a new connection."""
        info = EngineInfo(**welcome.engine.model_dump())
        if self._info is not None and replace(info, continues=self._info.continues) != self._info:
            raise RefusedError(
                f"the server at {self.url} runs {info.model!r} now, not {self._info.model!r} (or its codec or limits differ); "
                "a voice cannot move to it"
            )
        if self._server is not None:
            self.reconnections += 1
        if welcome.server != self._server:
            self._known.clear()
        self._info, self._server, self._max_text = info, welcome.server, welcome.max_text
        self._outbox.clear()
        self._leaving = welcome.draining
        self._ready.set()
        for stream in list(self._streams.values()):
            stream.rounds = 0
            if stream.number not in welcome.streams:
                self._ask(stream)
            else:  # what was acknowledged on the old line may not have arrived
                stream.told = stream.taken
                self._send(wire.Ack(stream=stream.number, seq=stream.next_seq, samples=stream.taken))
        for data, _ in self._answers.values():
            self._outbox.append(data)
        self._outbox_changed.set()
        log.info("connected to %s (%s)", self.url, info.model)

    async def _write(self, line: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                while self._outbox:
                    await line.send(self._outbox.popleft())
                self._outbox_changed.clear()
                await self._outbox_changed.wait()

    def _receive(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            self._receive_frame(wire.unpack(data))
            return
        match wire.parse_server(data):
            case wire.Finished() as message:
                if (stream := self._streams.get(message.stream)) is not None and not stream.ended:
                    error = _error(message.error) if message.error is not None else None
                    if message.reason not in set(FinishReason):
                        raise ProtocolError(
                            f"the server ended a chunk for {message.reason!r}, which is no reason of the protocol"
                        )
                    event = FinishedEvent(
                        FinishReason(message.reason),
                        message.frames,
                        error if isinstance(error, errors.SynthesisError) else None,
                        message.timings,
                    )
                    stream.next_seq = message.seq + 1
                    self._send(wire.Ack(stream=stream.number, seq=stream.next_seq, samples=stream.samples))
                    stream.give(event)
                    stream.end()
            case wire.Failed() as message:
                if message.stream is not None and (stream := self._streams.get(message.stream)) is not None:
                    self._send(wire.Ack(stream=stream.number, seq=message.seq + 1, samples=stream.samples))
                    stream.end(_error(message.failure))
                if message.request is not None and (pending := self._answers.get(message.request)) is not None:
                    _reject(pending[1], _error(message.failure))
            case wire.Unknown() as message:
                self._known.difference_update(message.missing)
                if message.stream is not None and (stream := self._streams.get(message.stream)) is not None:
                    if stream.rounds < _MOST_ROUNDS:
                        self._ask(stream)
                    else:
                        stream.end(
                            RefusedError("the server forgets this context as it comes: its max_store_mb is too small")
                        )
            case wire.Draining():
                self._leaving = True
                log.info("the server at %s is shutting down", self.url)
                self._move()
            case message:
                raise ProtocolError(f"the server sent {message.type!r} where none belongs")

    def _receive_frame(self, frame: wire.Frame) -> None:
        match frame:
            case wire.AudioFrame():
                stream = self._streams.get(frame.stream)
                if stream is None or stream.ended or frame.seq != stream.next_seq:
                    return  # a stopped stream's last frames, or frames that came twice
                if frame.codes.shape[1]:
                    self._check(frame.codes)
                stream.next_seq = frame.seq + 1
                self._take(stream, frame)
            case wire.CodesFrame() | wire.SoundFrame() | wire.VoiceFrame():
                if (pending := self._answers.get(frame.request)) is not None and not pending[1].done():
                    pending[1].set_result(frame)
            case _:
                raise ProtocolError(f"the server sent a {type(frame).__name__} where none belongs")

    def _take(self, stream: _Stream, frame: wire.AudioFrame) -> None:
        """New sound. After the chunk was asked again, what is known of it is compared and left out."""
        codes = frame.codes
        repeated = min(max(stream.frames - stream.again, 0), codes.shape[1])
        if repeated:
            before = np.concatenate(stream.codes, axis=1)[:, stream.again : stream.again + repeated]
            if not np.array_equal(before, codes[:, :repeated]):
                self._send(wire.Stop(stream=stream.number))
                stream.end(
                    ConnectionLostError("the server was lost in mid-sentence, and another one speaks it differently")
                )
                return
            stream.again += repeated
            codes = codes[:, repeated:]
        skip = min(max(stream.samples - frame.start, 0), len(frame.pcm) // 2)
        pcm = frame.pcm[2 * skip :]
        if codes.shape[1]:
            stream.codes.append(codes)
            stream.frames += codes.shape[1]
            stream.again = stream.frames
        if not pcm and not codes.shape[1]:
            return
        if stream.request.pcm:
            stream.samples = max(stream.samples, frame.start + len(frame.pcm) // 2)
        else:
            stream.samples += self._samples(codes)
        if not codes.shape[1]:
            codes = np.zeros((self.info.num_codebooks, 0), dtype=np.int16)
        stream.give(AudioEvent(pcm=pcm, start=frame.start + skip, codes=codes))

    def _check(self, codes: Codes) -> None:
        info = self.info
        wire.check_codes(
            codes,
            num_codebooks=info.num_codebooks,
            codebook_size=info.codebook_size,
            max_frames=info.max_positions,
        )

    def _fail(self, error: HiggsVoiceError) -> None:
        """Nothing more can be had: everything that waits is told."""
        self._failure = error
        self._ready.clear()
        self._line = None
        for stream in list(self._streams.values()):
            stream.end(error)
        for _, future in list(self._answers.values()):
            _reject(future, error)


def _checked(url: str) -> str:
    """A server's URL as it is. Errors: `SettingsError`."""
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    raise SettingsError(f"a server is named ws://host:port or wss://host:port, not {url!r}")


def _without_token(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    token, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=place)), unquote(token.removeprefix(":")) or None


def _reject(future: asyncio.Future[wire.Frame], error: HiggsVoiceError) -> None:
    if not future.done():
        future.set_exception(error)


def _error(failure: wire.Failure) -> HiggsVoiceError:
    """The error that the server had, as its own class."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, HiggsVoiceError):
        return kind(failure.message)
    return errors.RemoteError(f"{failure.kind}: {failure.message}")


def _refusal(error: InvalidStatus, url: str) -> HiggsVoiceError:
    status = error.response.status_code
    said = _said(error.response.body or b"")
    match status:
        case 401 | 403:
            return RefusedError(f"the server at {url} refuses the connection: {said or 'wrong or missing token'}")
        case 404:
            return ProtocolError(f"what answers at {url} is not a higgs-voice server of protocol {wire.SUBPROTOCOL}")
        case _:
            return ConnectionLostError(f"the server at {url} answered {status}: {said}")


def _said(body: bytes | bytearray) -> str:
    """The sentence of an answer in OpenAI's shape, else the answer; as far as it fits in a sentence of ours."""
    try:
        said = str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        said = body.decode("utf-8", "replace").strip()
    return said[:200]


def _check_id(name: str) -> None:
    if not 0 < len(name) <= wire.LONGEST_NAME:
        raise SettingsError(f"the id of a session or a speech has 1 to {wire.LONGEST_NAME} characters, not {len(name)}")


def _plain(text: str) -> str:
    """Text that can travel: half of a surrogate pair, which an LLM's broken stream may leave, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
