"""The websocket side: clients, their sessions and the streams of audio they are reading. No web framework here: a connection
is whatever has `send`, and the hub is fed messages."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol

from .. import telemetry, wire
from ..conversation.synthesizer import (
    AudioEvent,
    ContextSpec,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    Synthesizer,
    VoicePrompt,
)
from ..errors import EngineBusyError, EngineDiedError, HiggsVoiceError, ProtocolError, RefusedError
from .metrics import Metrics
from .settings import ServerSettings
from .voices import Voices

log = logging.getLogger("higgs_voice.server")

_LATE_S = 0.02
"""Audio that leaves this much later than a listener needed it is an underrun."""
_LOOK_S = 1.0
"""How often it is looked whether the engine has failed."""
_MAX_PENDING = 16
"""Clips that one client may have in work at once."""


class Connection(Protocol):
    """A websocket, as the hub sees it."""

    def send(self, data: str | bytes) -> None:
        """Queue a message; never blocks. What a stream queues is bounded by its window."""
        ...

    def close(self, code: int, reason: str) -> None: ...


class Bucket:
    """So many a minute, with a tenth of a minute's worth at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._rate = per_minute / 60.0
        self._most = self._level = max(1.0, per_minute / 10.0)
        self._clock = clock
        self._then = clock()

    def take(self) -> bool:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._then) * self._rate)
        self._then = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class Hub:
    """All clients of one engine. Single-threaded: everything runs on the event loop."""

    def __init__(
        self,
        engine: Synthesizer,
        settings: ServerSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.voices = Voices(settings.voices)
        self.id = secrets.token_hex(8)
        self.draining = False
        self.drained = ""
        """How a drain ended."""
        self.clients: dict[str, Client] = {}
        self.http_streams = 0
        self._active_at = clock()

    # what the outside asks

    @property
    def sessions(self) -> int:
        return sum(len(client.sessions) for client in self.clients.values())

    @property
    def streams(self) -> int:
        return sum(stream.running for client in self.clients.values() for stream in client.streams.values())

    @property
    def load(self) -> float:
        """0 … 1; a draining server is full, and one whose engine has failed."""
        if self.draining or self.failure is not None:
            return 1.0
        settings = self.settings
        busy = (self.streams + self.http_streams) / settings.max_streams
        most = min(settings.max_sessions, self.room or settings.max_sessions)
        return min(1.0, max(busy, (self.sessions + self.http_streams) / most))

    @property
    def failure(self) -> HiggsVoiceError | None:
        """Why the engine speaks nothing more; None while it does."""
        return getattr(self.engine, "failure", None)

    async def failed(self) -> None:
        """Returns when the engine has failed for good."""
        while self.failure is None:  # noqa: ASYNC110 - an engine has a property, and no event
            await asyncio.sleep(_LOOK_S)

    @property
    def room(self) -> int | None:
        """Sessions that the engine can speak without gaps, by its measured pace; None where that is unknown or no limit."""
        capacity: float | None = getattr(self.engine, "capacity", None)
        if capacity is None or self.settings.admit_beyond_capacity:
            return None
        return max(1, int(capacity / self.settings.speaking_share))

    def measure(self) -> None:
        """Bring the gauges up to date."""
        streams = [stream for client in self.clients.values() for stream in client.streams.values() if stream.running]
        self.metrics.connections.set(sum(client.connection is not None for client in self.clients.values()))
        self.metrics.sessions.set(self.sessions)
        self.metrics.streams.set(len(streams) + self.http_streams)
        self.metrics.queue.set(sum(stream.first_at is None for stream in streams))
        self.metrics.load.set(self.load)
        self.metrics.capacity.set(float(getattr(self.engine, "capacity", None) or 0.0))
        self.metrics.kv_bytes.set(float(getattr(self.engine, "kv_bytes", 0)))

    # connections

    def join(self, hello: wire.Hello, connection: Connection) -> Client:
        """A connection's first message. Errors: `ProtocolError`, `RefusedError`, `EngineBusyError`."""
        if hello.version != wire.VERSION:
            raise ProtocolError(
                f"this server speaks version {wire.VERSION} of the protocol, the client {hello.version}"
            )
        client = self.clients.get(hello.client)
        if client is None:
            if len(self.clients) >= self.settings.max_connections:
                self.metrics.refusals.labels("connections").inc()
                telemetry.event(log, "refused", level=logging.WARNING, why="connections")
                raise EngineBusyError(f"the server has {self.settings.max_connections} clients, which is its limit")
            client = self.clients[hello.client] = Client(self, hello.client)
        else:
            self.metrics.resumptions.inc()
        telemetry.event(log, "client connected", client=client.prefix, again=client.expiry is not None or None)
        try:
            client.attach(hello, connection)
        except BaseException:
            self.end(client)
            raise
        return client

    def leave(self, client: Client, connection: Connection, *, for_good: bool) -> None:
        """A connection ended: the client's sessions are kept for the grace time unless it said goodbye."""
        if client.connection is not connection:
            return  # the client has come back on another one
        client.connection = None
        telemetry.event(log, "client left", client=client.prefix, sessions=len(client.sessions), for_good=for_good)
        if for_good or self.settings.grace_s == 0.0 or not client.sessions:
            self.end(client)  # without a session there is nothing to come back to
        else:
            client.expiry = asyncio.get_running_loop().call_later(self.settings.grace_s, self.end, client)

    def end(self, client: Client) -> None:
        """Free everything of a client."""
        if self.clients.get(client.id) is client:
            del self.clients[client.id]
        client.end()

    def note_activity(self) -> None:
        self._active_at = self.clock()

    async def drain(self) -> None:
        """No new sessions from now on; returns when nothing has been spoken for `quiet_s`, or after `drain_s`."""
        self.draining = True
        for client in self.clients.values():
            client.send(wire.Draining())
        deadline = self.clock() + self.settings.drain_s
        self.note_activity()
        while self.clock() < deadline:
            if self.streams or self.http_streams:
                self.note_activity()
            elif not self.sessions:
                self.drained = "no session was left"
                return
            elif self.clock() - self._active_at >= self.settings.quiet_s:
                self.drained = f"nothing was said for {self.settings.quiet_s:g} s"
                return
            await asyncio.sleep(0.05)
        self.drained = f"drain_s ({self.settings.drain_s:g}) was over"

    async def aclose(self) -> None:
        """End every client and wait for their tasks."""
        self.draining = True
        tasks = [task for client in self.clients.values() for task in client.tasks]
        for client in list(self.clients.values()):
            if client.connection is not None:
                client.connection.close(1001, "the server ends")
            self.end(client)
        await asyncio.gather(*tasks, return_exceptions=True)


class Client:
    """What the server holds for one client, over all its connections."""

    def __init__(self, hub: Hub, client_id: str) -> None:
        self.hub = hub
        self.id = client_id
        self.prefix = secrets.token_hex(6)
        """Keeps the session and speech ids of one client apart from every other's."""
        self.connection: Connection | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.sessions: set[str] = set()
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._rate = Bucket(hub.settings.max_chunks_per_minute, hub.clock)
        self._store: OrderedDict[str, Exchange] = OrderedDict()
        self._stored = 0

    def send(self, message: wire.Message) -> None:
        if self.connection is not None:
            self.connection.send(wire.dump(message))

    def attach(self, hello: wire.Hello, connection: Connection) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        if self.connection is not None:
            self.connection.close(wire.CLOSE_REPLACED, "the client came back on another connection")
        self.connection = connection
        for session in self.sessions - set(hello.sessions):
            self._close(session)
        for number, stream in list(self.streams.items()):
            if hello.server != self.hub.id or number not in hello.streams:
                stream.stop(interrupted=stream.running)  # else the client has it whole, and the last ack was lost
                del self.streams[number]
        self.send(
            wire.Welcome(
                version=wire.VERSION,
                server=self.hub.id,
                engine=engine_facts(self.hub.engine, self.hub.settings),
                streams=tuple(self.streams),
                max_text=self.hub.settings.max_text,
                draining=self.hub.draining,
            )
        )
        for number, stream in self.streams.items():
            stream.resend(hello.streams[number])

    def end(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
        for stream in self.streams.values():
            stream.stop()
            if not stream.begun:
                self.hub.metrics.chunks.labels(FinishReason.STOPPED.value).inc()
        for session in list(self.sessions):
            self._close(session)
        for task in self.tasks:
            task.cancel()
        self.streams.clear()
        self._store.clear()

    # messages

    def receive(self, message: wire.Message) -> None:
        """Any text message but `Hello`. Errors: `ProtocolError`, after which the connection cannot go on."""
        match message:
            case wire.Speak():
                self._speak(message)
            case wire.Ack():
                if (stream := self.streams.get(message.stream)) is not None:
                    stream.acknowledge(message.seq, message.samples)
            case wire.Stop():
                if (stream := self.streams.pop(message.stream, None)) is not None:
                    stream.stop()
            case wire.Prepare():
                self._prepare(message)
            case wire.CloseSession():
                self._close(message.session)
            case wire.VoiceRequest():
                self._answer(message.request, self._voice(message))
            case _:
                raise ProtocolError(f"the client sent a {type(message).__name__} where none belongs")

    def receive_frame(self, frame: wire.Frame) -> None:
        """Any binary message. Errors: `ProtocolError`."""
        info = self.hub.engine.info
        match frame:
            case wire.ExchangeFrame():
                wire.check_codes(
                    frame.codes,
                    num_codebooks=info.num_codebooks,
                    codebook_size=info.codebook_size,
                    max_frames=info.max_positions,
                )
                self._keep(Exchange(text=frame.text, codes=frame.codes))
            case wire.ClipFrame():
                most = min(info.max_clip_s, self.hub.settings.max_clip_s)
                if len(frame.samples) > most * info.sample_rate:
                    seconds = len(frame.samples) / info.sample_rate
                    error = RefusedError(f"the clip is {seconds:.0f} s long; this server takes {most:.0f} s")
                    self._refuse("clip", error, request=frame.request)
                else:
                    self._answer(frame.request, self._encode(frame))
            case wire.CodesFrame():
                wire.check_codes(
                    frame.codes,
                    num_codebooks=info.num_codebooks,
                    codebook_size=info.codebook_size,
                    max_frames=info.max_positions,
                )
                self._answer(frame.request, self._decode(frame))
            case _:
                raise ProtocolError(f"the client sent a {type(frame).__name__} where none belongs")

    def _speak(self, message: wire.Speak) -> None:
        settings = self.hub.settings
        if message.stream in self.streams:
            raise ProtocolError(f"stream {message.stream} is already there")
        if len(message.text) > settings.max_text:
            sentence = f"the text has {len(message.text)} characters; this server takes {settings.max_text} a chunk"
            return self._refuse("text", RefusedError(sentence), stream=message.stream)
        voice = message.context
        if (
            size := len(voice.system or "") + len(voice.scene or "") + sum(map(len, voice.speakers))
        ) > settings.max_text:
            sentence = f"the voice is described in {size} characters; this server takes {settings.max_text}"
            return self._refuse("text", RefusedError(sentence), stream=message.stream)
        if not self._rate.take():
            sentence = (
                f"more than {settings.max_chunks_per_minute} chunks a minute, which is the server's limit for a client"
            )
            return self._refuse("rate", RefusedError(sentence), stream=message.stream)
        if not self._admit(message.session):
            if self.hub.draining:
                error = EngineBusyError("the server is shutting down and takes no new sessions")
                return self._refuse("draining", error, stream=message.stream)
            if self.hub.sessions >= settings.max_sessions:
                error = EngineBusyError(f"the server has {settings.max_sessions} sessions, which is its limit")
                return self._refuse("sessions", error, stream=message.stream)
            error = EngineBusyError(
                f"the server is busy: it has {self.hub.sessions} sessions and its engine keeps {self.hub.room} free of gaps; "
                "try another server"
            )
            return self._refuse("capacity", error, stream=message.stream)
        contexts = [message.context, *([message.next_context] if message.next_context else [])]
        if message.spoken is not None and not self.hub.engine.info.continues:
            error = RefusedError("this server's engine does not go on with what another one has begun")
            return self._refuse("spoken", error, stream=message.stream)
        spoken = (message.spoken,) if message.spoken is not None else ()
        if missing := self._missing(*contexts, more=spoken):
            self.send(wire.Unknown(stream=message.stream, missing=missing))
            return None
        if (frames := max(map(self._frames, contexts))) > (most := self.hub.engine.info.max_positions):
            error = RefusedError(f"the context has {frames} frames; this server's engine takes {most}")
            return self._refuse("context", error, stream=message.stream)
        request = SpeakRequest(
            session_id=f"{self.prefix}/{message.session}",
            speech_id=f"{self.prefix}/{message.stream}/{message.speech}",
            context=self._context(message.context),
            text=message.text,
            sampling=message.sampling,
            next_context=self._context(message.next_context) if message.next_context else None,
            pcm=message.pcm,
            spoken=self._store[message.spoken].codes if message.spoken is not None else None,
            heard=message.heard,
        )
        window = int(settings.max_window_s * self.hub.engine.info.sample_rate)
        stream = Stream(self, message.stream, request, window=min(message.window, window))
        self.streams[message.stream] = stream
        self._spawn(stream.run())
        return None

    def _prepare(self, message: wire.Prepare) -> None:
        if not self._admit(message.session):
            return  # a hint; what follows it is refused with its reason
        if missing := self._missing(message.context):
            self.send(wire.Unknown(stream=None, missing=missing))
        elif self._frames(message.context) <= self.hub.engine.info.max_positions:
            self.hub.engine.prepare(f"{self.prefix}/{message.session}", self._context(message.context))

    def _admit(self, session: str) -> bool:
        if session not in self.sessions:
            taken = self.hub.sessions + self.hub.http_streams
            if self.hub.draining or self.hub.sessions >= self.hub.settings.max_sessions:
                return False
            if self.hub.room is not None and taken >= self.hub.room:
                return False
            self.sessions.add(session)
        return True

    def _close(self, session: str) -> None:
        name = f"{self.prefix}/{session}"
        for number, stream in list(self.streams.items()):
            if stream.request.session_id == name:
                stream.stop()
                del self.streams[number]
        if session in self.sessions:
            self.sessions.remove(session)
            self.hub.engine.close_session(name)

    def _refuse(
        self, why: str, error: HiggsVoiceError, *, stream: int | None = None, request: int | None = None
    ) -> None:
        self.hub.metrics.refusals.labels(why).inc()
        telemetry.event(log, "refused", level=logging.WARNING, client=self.prefix, why=why)
        self.send(wire.Failed(stream=stream, request=request, failure=failure(error)))

    # clips

    def _answer(self, request: int, work: Coroutine[Any, Any, wire.Frame]) -> None:
        if self._pending >= _MAX_PENDING:
            work.close()
            error = EngineBusyError(f"{_MAX_PENDING} clips of this client are in work, which is the limit")
            return self._refuse("clips", error, request=request)
        self._pending += 1
        return self._spawn(self._work(request, work))

    async def _work(self, request: int, work: Coroutine[Any, Any, wire.Frame]) -> None:
        try:
            frame = await work
        except HiggsVoiceError as error:
            self.send(wire.Failed(request=request, failure=failure(error)))
        except Exception as error:
            log.exception("the engine broke while it worked on a clip")
            self.send(wire.Failed(request=request, failure=failure(_broke(error))))
        else:
            if self.connection is not None:
                self.connection.send(frame.pack())
        finally:
            self._pending -= 1

    async def _encode(self, frame: wire.ClipFrame) -> wire.Frame:
        return wire.CodesFrame(frame.request, await self.hub.engine.encode(frame.samples))

    async def _voice(self, message: wire.VoiceRequest) -> wire.Frame:
        """A voice as codes of this engine's codec: the operator's clips do not leave the machine."""
        voice = await self.hub.voices.resolved(message.name, self.hub.engine)
        return wire.VoiceFrame(message.request, voice.without_sound().to_bytes())

    async def _decode(self, frame: wire.CodesFrame) -> wire.Frame:
        return wire.SoundFrame(frame.request, await self.hub.engine.decode(frame.codes))

    # exchanges

    def _keep(self, exchange: Exchange) -> None:
        name = wire.digest(exchange.text, exchange.codes)
        if name not in self._store:
            self._store[name] = exchange
            self._stored += _size(exchange)
        self._store.move_to_end(name)
        while self._stored > self.hub.settings.max_store_mb * 1e6 and len(self._store) > 1:
            self._stored -= _size(self._store.popitem(last=False)[1])

    def _missing(self, *contexts: wire.ContextRef, more: tuple[str, ...] = ()) -> tuple[str, ...]:
        names = {name: None for context in contexts for name in (*context.references, *context.exchanges)}
        return tuple(name for name in (*names, *more) if name not in self._store)

    def _frames(self, context: wire.ContextRef) -> int:
        return sum(self._store[name].frames for name in (*context.references, *context.exchanges))

    def _context(self, context: wire.ContextRef) -> ContextSpec:
        for name in (*context.references, *context.exchanges):
            self._store.move_to_end(name)
        voice = VoicePrompt(
            system=context.system,
            scene=context.scene,
            speakers=context.speakers,
            references=tuple(self._store[name] for name in context.references),
            references_in_scene=context.references_in_scene,
        )
        return ContextSpec(voice=voice, exchanges=tuple(self._store[name] for name in context.exchanges))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Stream:
    """One chunk being spoken. What the client has not acknowledged is kept, so that a new connection can go on with it;
    flow control bounds it, and stops the generation by not taking the engine's next event."""

    def __init__(self, client: Client, number: int, request: SpeakRequest, *, window: int) -> None:
        self.client = client
        self.number = number
        self.request = request
        self.running = True
        self.begun = False
        """Its task has run."""
        self.first_at: float | None = None
        self.first_pcm_s: float | None = None
        """From the request to its first audio."""
        self._window = window
        self._asked_at = client.hub.clock()
        self._waited = 0.0
        self._unacked: deque[tuple[int, bytes | str]] = deque()
        self._seq = 0
        # Of codes alone the client counts the samples that they stand for.
        info = client.hub.engine.info
        self._sent = request.heard if request.pcm else request.spoken_frames * (info.sample_rate // info.frame_rate)
        self._acked = 0
        self._stopped = False
        self._finished = False
        self._room = asyncio.Event()

    def acknowledge(self, seq: int, samples: int) -> None:
        self._acked = max(self._acked, samples)
        while self._unacked and self._unacked[0][0] < seq:
            self._unacked.popleft()
        self._room.set()
        if self._finished and not self._unacked:
            self.client.streams.pop(self.number, None)

    def resend(self, seq: int) -> None:
        """Go on with frame `seq` on the client's new connection."""
        while self._unacked and self._unacked[0][0] < seq:
            self._unacked.popleft()
        for _, data in self._unacked:
            assert self.client.connection is not None
            self.client.connection.send(data)

    def stop(self, *, interrupted: bool = True) -> None:
        if not self._stopped:
            self._stopped = True
            if interrupted and (self.running or self._unacked):  # made, perhaps, but not received
                self.client.hub.metrics.interruptions.inc()
            self._unacked.clear()
            self._room.set()
            self.client.hub.engine.stop(self.request.speech_id)

    async def run(self) -> None:
        """Take the engine's events and send them, as fast as the window allows."""
        self.begun = True
        client, metrics = self.client, self.client.hub.metrics
        engine, name = client.hub.engine, self.request.session_id
        try:
            if self._stopped:  # before the engine had heard of it
                metrics.chunks.labels(FinishReason.STOPPED.value).inc()
                return
            async with aclosing(engine.speak(self.request)) as events:
                async for event in events:
                    if isinstance(event, AudioEvent):
                        if self._stopped:  # perhaps before the engine could know what was meant
                            engine.stop(self.request.speech_id)
                        await self._audio(event)
                    else:
                        self._finish(event)
        except asyncio.CancelledError:
            if not self._finished:
                metrics.chunks.labels(FinishReason.STOPPED.value).inc()
            raise
        except HiggsVoiceError as error:
            self._fail(error)
            metrics.chunks.labels("error").inc()
            self._note(None, error)
        except Exception as error:
            log.exception("the engine broke while it spoke a chunk")
            self._fail(_broke(error))
            metrics.chunks.labels("error").inc()
        finally:
            self.running = False
            client.hub.note_activity()
            if self._stopped:
                if client.streams.get(self.number) is self:
                    del client.streams[self.number]
                if name.partition("/")[2] not in client.sessions:
                    engine.close_session(name)  # it may have begun after its session was closed

    async def _audio(self, event: AudioEvent) -> None:
        if self._stopped:
            return
        hub = self.client.hub
        now = hub.clock()
        info = hub.engine.info
        rate = info.sample_rate
        if event.pcm:
            if self.first_at is None:
                self.first_at = now - event.start / rate
                self.first_pcm_s = now - self._asked_at
                hub.metrics.ttfa.observe(self.first_pcm_s)
            elif now > self.first_at + event.start / rate + _LATE_S:
                hub.metrics.underruns.inc()
                self.first_at = now - event.start / rate  # the listener waited; later audio is due that much later
        self._emit(wire.AudioFrame(self.number, self._seq, event.start, event.codes, event.pcm).pack())
        if self.request.pcm:
            self._sent = event.start + len(event.pcm) // 2
        else:
            self._sent += event.codes.shape[1] * (rate // info.frame_rate)
        paused = False
        while self._sent - self._acked >= self._window and not self._stopped:
            paused = True
            self._room.clear()
            await self._room.wait()
        self._waited += hub.clock() - now
        if paused and self.first_at is not None:  # a listener that paused needs what follows later by as much
            self.first_at = max(self.first_at, hub.clock() - self._acked / rate)

    def _finish(self, event: FinishedEvent) -> None:
        hub = self.client.hub
        hub.metrics.chunks.labels(event.reason.value).inc()
        seconds = max(0, event.frames - self.request.spoken_frames) / hub.engine.info.frame_rate
        hub.metrics.audio.inc(seconds)
        if seconds and event.reason is not FinishReason.STOPPED:
            work = event.timings.get("total", hub.clock() - self._asked_at) - self._waited
            hub.metrics.rtf.observe(max(0.0, work) / seconds)
        message = wire.Finished(
            stream=self.number,
            seq=self._seq,
            reason=event.reason.value,
            frames=event.frames,
            error=failure(event.error) if event.error else None,
            timings=event.timings,
        )
        self._emit(wire.dump(message))
        self._finished = True
        self._note(event, event.error)

    def _note(self, event: FinishedEvent | None, error: BaseException | None) -> None:
        hub, session = self.client.hub, self.request.session_id.partition("/")[2]
        telemetry.event(
            log,
            "chunk served",
            level=logging.INFO if error is None else logging.WARNING,
            call_id=telemetry.call_of(session),
            session=session,
            client=self.client.prefix,
            stream=self.number,
            reason=event.reason.value if event is not None else "error",
            audio_s=event.frames / hub.engine.info.frame_rate if event is not None else None,
            first_pcm_s=self.first_pcm_s,
            error=telemetry.kind_of(error),
            text=self.request.text if hub.settings.log_text else None,
        )

    def _fail(self, error: HiggsVoiceError) -> None:
        self._emit(wire.dump(wire.Failed(stream=self.number, seq=self._seq, failure=failure(error))))
        self._finished = True

    def _emit(self, data: bytes | str) -> None:
        if self._stopped:
            return
        self._unacked.append((self._seq, data))
        self._seq += 1
        if self.client.connection is not None:
            self.client.connection.send(data)


def _broke(error: Exception) -> EngineDiedError:
    return EngineDiedError(f"the engine broke: {type(error).__name__}: {error}")


def failure(error: BaseException) -> wire.Failure:
    return wire.Failure(kind=type(error).__name__, message=str(error))


def engine_facts(engine: Synthesizer, settings: ServerSettings) -> wire.EngineFacts:
    info = engine.info
    return wire.EngineFacts(
        model=info.model,
        sample_rate=info.sample_rate,
        frame_rate=info.frame_rate,
        num_codebooks=info.num_codebooks,
        codebook_size=info.codebook_size,
        max_positions=info.max_positions,
        max_clip_s=min(info.max_clip_s, settings.max_clip_s),
        codec_fingerprint=info.codec_fingerprint,
        continues=info.continues,
    )


def _size(exchange: Exchange) -> int:
    return exchange.codes.nbytes + 4 * len(exchange.text) + 200
