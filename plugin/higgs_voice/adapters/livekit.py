"""Higgs Audio v2 as a LiveKit Agents TTS: one voice for a whole `AgentSession`.

    session = AgentSession(tts=higgs.TTS(model="ws://127.0.0.1:8765"), ...)
    await session.start(agent, room=ctx.room)
    higgs.attach(session)  # in a job it attaches itself; elsewhere this line does

The classes are translators: chunking, the rolling context and generation are `VoiceSession`'s. Each `stream()` is one speech
of the conversation that belongs to the `AgentSession` it was called for, whichever agent speaks.

**What was heard.** Every frame carries the id of its speech. `HeardTracker` stands on top of the session's audio output,
sees which speech is being captured, and tells the conversation how far it was played when the output says so. Where it
cannot stand, the output's ``playback_finished`` events are matched with the speeches in order. A speech whose frames never
reached the output (synthesis ahead of time that was thrown away) leaves no trace. Used without an `AgentSession`, what
was generated counts as played at the pace of the clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
import urllib.request
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from ..audio import SAMPLE_RATE, PcmChunk
from ..config import Sampling
from ..conversation.presets import find_voice
from ..conversation.session import SessionSettings, VoiceSession
from ..conversation.speech import Speech
from ..conversation.synthesizer import Synthesizer
from ..conversation.timing import Word
from ..conversation.voice import Voice
from ..errors import (
    ConnectionLostError,
    DependencyError,
    EngineBusyError,
    EngineClosedError,
    EngineDiedError,
    HiggsVoiceError,
    RefusedError,
    SettingsError,
    SynthesisError,
)
from ..text import Lexicon
from ..wire import DEFAULT_PORT
from . import engines

try:
    from livekit import rtc
    from livekit.agents import (
        DEFAULT_API_CONNECT_OPTIONS,
        APIConnectionError,
        APIConnectOptions,
        APIError,
        APIStatusError,
        APITimeoutError,
        get_job_context,
        tts,
        utils,
    )
    from livekit.agents.types import TimedString
    from livekit.agents.voice import AgentSession, io
except ModuleNotFoundError as error:
    raise DependencyError(
        f'the LiveKit plugin needs {error.name}, which is not installed; run: pip install "higgs-voice[livekit]"'
    ) from error

log = logging.getLogger("livekit.plugins.higgs")

__all__ = ["TTS", "ChunkedStream", "EngineLoad", "HeardTracker", "SynthesizeStream", "attach", "load_fnc"]

PROVIDER = "higgs-voice"
TAG = "higgs_voice.speech"
"""Key of a frame's userdata: the id of the speech it belongs to."""
_NOTHING_SAID = b"\0\0" * (SAMPLE_RATE // 50)
"""20 ms of silence for text that has nothing to say: the framework takes a stream without any audio for a failure."""
_POLL_S = 0.5

_Session = AgentSession[Any]


@dataclass(slots=True, eq=False)
class _Said:
    """A speech, and where the framework is with it."""

    speech: Speech
    conversation: Conversation
    handle: Any = None
    """The framework's `SpeechHandle`, where it is known."""
    taken: bool = False
    """Some of its audio was taken from the stream."""
    captured: bool = False
    """Some of its audio reached the output."""
    captured_event: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float | None = None
    """Event loop time at which it began to play."""
    paused_at: float | None = None
    settled: bool = False

    def capture(self) -> None:
        self.captured = True
        self.captured_event.set()

    def settle(self, heard_s: float) -> None:
        if not self.settled:
            self.settled = True
            self.captured_event.set()
            self.conversation.settle(self, heard_s)

    def playhead_s(self, now: float) -> float:
        """Seconds played, by the clock."""
        if self.started_at is None:
            return 0.0
        return (self.paused_at if self.paused_at is not None else now) - self.started_at


class Conversation:
    """One voice on one engine, for as long as an `AgentSession` lives (or a TTS that is used without one)."""

    def __init__(self, options: _Options) -> None:
        self._options = options
        self._session: VoiceSession | None = None
        self._engine: Synthesizer | None = None
        self._borrowed: str | None = None
        self._opening = asyncio.Lock()
        self._changing: asyncio.Task[None] | None = None
        self._closed = False
        self.said: OrderedDict[str, _Said] = OrderedDict()
        """Speeches that are not settled, in the order in which they began."""

    @property
    def session(self) -> VoiceSession | None:
        """The voice session; None before the first use."""
        return self._session

    @property
    def open(self) -> bool:
        return self._session is not None

    async def ready(self) -> VoiceSession:
        """The session on a started engine. Errors: `HiggsVoiceError`; the next call tries again."""
        async with self._opening:
            if self._closed:
                raise EngineClosedError("the conversation has ended")
            if self._session is None:
                options = self._options
                engine = self._engine = options.engine or self._engine
                if engine is None:
                    engine = self._engine = await engines.borrow(options.model)
                    self._borrowed = options.model
                await engine.start()
                session = VoiceSession(
                    engine,
                    voice=await _voice(options, engine),
                    # how far to run ahead is decided here, by what is played
                    settings=options.settings.replace(run_ahead_s=min(options.settings.run_ahead_s, 0.5)),
                    lexicon=options.lexicon,
                    clock=asyncio.get_running_loop().time,
                )
                await session.start()
                self._session = session
        while self._changing is not None:  # settings changed before this speech hold for it
            await asyncio.shield(self._changing)
        return self._session

    def speak(self, session: VoiceSession, handle: Any) -> _Said:
        """Begin a speech. What the framework has thrown away since the last one leaves the context first."""
        for said in list(self.said.values()):
            if said.speech.settled:  # by the clock, where nobody reports
                del self.said[said.speech.id]
            elif not said.captured and said.handle is not None and (said.handle.interrupted or said.handle.done()):
                said.settle(0.0)
        if self._session is not None:
            self._session.by_clock = handle is None
        speech = session.speak()
        said = self.said[speech.id] = _Said(speech, self, handle)
        if handle is not None:
            handle.add_done_callback(lambda _: self._handle_done(said))  # pyright: ignore[reportUnknownLambdaType]
        return said

    def settle(self, said: _Said, heard_s: float) -> None:
        """For `_Said.settle`."""
        self.said.pop(said.speech.id, None)
        if self._session is not None:
            self._session.settle(said.speech.id, heard_s)

    def change(self, options: _Options, context: Literal["keep", "new"]) -> None:
        """Take other options from the next speech on."""
        before = self._changing
        self._options = options

        async def change() -> None:
            try:
                if before is not None:
                    await asyncio.shield(before)
                async with self._opening:
                    if self._session is not None:
                        await self._session.update(
                            voice=await _voice(options, self._session.engine),
                            sampling=options.settings.sampling,
                            lexicon=options.lexicon,
                            context=context,
                        )
            except HiggsVoiceError as error:
                log.error("the voice stays as it was: %s", error)
            finally:
                if self._changing is task:
                    self._changing = None

        if self._session is not None:
            task = self._changing = asyncio.get_running_loop().create_task(change(), name="higgs change")

    async def aclose(self) -> None:
        """Stop everything and free the engine's state; idempotent."""
        self._closed = True
        if self._changing is not None:
            await utils.aio.cancel_and_wait(self._changing)
        for said in list(self.said.values()):
            said.settled = True
            said.captured_event.set()
        self.said.clear()
        async with self._opening:
            session, self._session = self._session, None
            borrowed, self._borrowed = self._borrowed, None
        if session is not None:
            await session.aclose()
        if borrowed is not None:
            await engines.give_back(borrowed)

    def _handle_done(self, said: _Said) -> None:
        """The framework is finished with the turn: what it has not reported by now it never will."""
        if not said.captured:
            said.settle(0.0)
        elif not said.settled and said.handle.interrupted:
            said.settle(said.playhead_s(asyncio.get_running_loop().time()))


class HeardTracker(io.AudioOutput):
    """Stands on top of an audio output and reports which speech was played, and how far."""

    def __init__(self, link: _Link, next_in_chain: io.AudioOutput) -> None:
        super().__init__(
            label="HiggsHeard",
            next_in_chain=next_in_chain,
            sample_rate=next_in_chain.sample_rate,
            capabilities=io.AudioOutputCapabilities(pause=True),
        )
        self._link = link
        self._segments: deque[_Segment] = deque()
        self._capturing = False
        self.on("playback_finished", self._finished)  # before anyone else hears of it

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        if not self._capturing:
            self._capturing = True
            self._segments.append(_Segment())
        segment = self._segments[-1]
        accepted = bool(segment.parts)
        segment.add(self._link.said_of(frame, segment.parts[-1][0] if accepted else None), frame.duration)
        assert self.next_in_chain is not None
        try:
            await self.next_in_chain.capture_frame(frame)
        except asyncio.CancelledError:
            if not accepted and self._segments and self._segments[-1] is segment:
                self._segments.pop()  # the output never had any of it, and will not report it
                segment.withdraw()
            raise
        await super().capture_frame(frame)

    def flush(self) -> None:
        super().flush()
        self._capturing = False
        if self.next_in_chain is not None:
            self.next_in_chain.flush()

    def clear_buffer(self) -> None:
        if self.next_in_chain is not None:
            self.next_in_chain.clear_buffer()

    def pause(self) -> None:
        super().pause()
        for segment in self._segments:
            segment.pause(asyncio.get_running_loop().time())

    def resume(self) -> None:
        super().resume()
        for segment in self._segments:
            segment.resume(asyncio.get_running_loop().time())

    def on_playback_started(self, *, created_at: float) -> None:
        if self._segments:
            self._segments[0].start(asyncio.get_running_loop().time())
        super().on_playback_started(created_at=created_at)

    def on_playback_progressed(self, *, started_at: float, offset: float, duration: float) -> None:
        if self._segments:
            self._segments[0].progress(offset + duration)
        super().on_playback_progressed(started_at=started_at, offset=offset, duration=duration)

    def _finished(self, event: io.PlaybackFinishedEvent) -> None:
        if self._segments:
            self._segments.popleft().finish(event.playback_position, interrupted=event.interrupted)


class _Segment:
    """What the output plays from one flush to the next: usually one speech."""

    def __init__(self) -> None:
        self.parts: list[tuple[_Said | None, float]] = []
        """Speeches in order (None for sound that is not ours), each with the place in the segment where it begins."""
        self._length = 0.0
        self._reached = 0.0

    def add(self, said: _Said | None, duration: float) -> None:
        if not self.parts or self.parts[-1][0] is not said:
            self.parts.append((said, self._length))
            if said is not None:
                said.capture()
        self._length += duration

    def withdraw(self) -> None:
        for said, _ in self.parts:
            if said is not None:
                said.captured = False

    def start(self, now: float) -> None:
        for said, place in self.parts:
            if said is not None:
                said.started_at = now + place

    def pause(self, now: float) -> None:
        for said, _ in self.parts:
            if said is not None and said.paused_at is None:
                said.paused_at = now

    def resume(self, now: float) -> None:
        for said, _ in self.parts:
            if said is not None and said.paused_at is not None:
                if said.started_at is not None:
                    said.started_at += now - said.paused_at
                said.paused_at = None

    def progress(self, position_s: float) -> None:
        """The output has played up to here; unlike the final position this counts what a pause threw away."""
        self._reached = max(self._reached, position_s)

    def finish(self, position_s: float, *, interrupted: bool) -> None:
        reached = max(self._reached, position_s)
        ends = [place for _, place in self.parts[1:]] + [self._length]
        for (said, place), end in zip(self.parts, ends, strict=True):
            if said is None:
                continue
            if not interrupted and said.speech.complete:
                said.settle(float("inf"))
            else:
                said.settle(max(0.0, min(reached, end) - place))


class _Link:
    """What is known of one `AgentSession`: its conversations, and what reports to them."""

    def __init__(self, session: _Session) -> None:
        self._session = weakref.ref(session)
        self._tracker: HeardTracker | None = None
        self._listening: io.AudioOutput | None = None
        self.conversations: dict[Hashable, Conversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        session.on("close", self._on_close)

    @property
    def tracked(self) -> bool:
        """Whether the tracker stands in the session's output now."""
        session = self._session()
        item = session.output.audio if session is not None else None
        while item is not None:
            if item is self._tracker:
                return True
            item = item.next_in_chain
        return False

    def attach(self) -> bool:
        """Put the tracker on top of the session's output; whether there is one."""
        session = self._session()
        if session is None or session.output.audio is None:
            return False
        if not self.tracked:
            self._stop_listening()
            self._tracker = HeardTracker(self, session.output.audio)
            session.output.audio = self._tracker
        return True

    def listen(self) -> None:
        """Without a tracker, follow what the output reports."""
        session = self._session()
        output = session.output.audio if session is not None else None
        if output is self._listening or self.tracked:
            return
        self._stop_listening()
        if output is not None:
            self._listening = output
            output.on("playback_finished", self._on_finished)

    def said_of(self, frame: rtc.AudioFrame, last: _Said | None) -> _Said | None:
        """The speech that a frame belongs to. Resampled frames have lost their tags: they belong to the segment's `last` one,
        and a segment's first to the oldest speech whose audio was taken and has not been captured."""
        tag = frame.userdata.get(TAG)
        for conversation in self.conversations.values():
            if tag is not None and tag in conversation.said:
                return conversation.said[tag]
        if tag is None and not frame.userdata:
            return self._oldest(captured=False) if last is None else last
        return None

    def _oldest(self, *, captured: bool) -> _Said | None:
        for conversation in self.conversations.values():
            for said in conversation.said.values():
                if said.taken and said.captured == captured:
                    return said
        return None

    def _on_finished(self, event: io.PlaybackFinishedEvent) -> None:
        said = self._oldest(captured=False)
        if said is not None:
            said.capture()
            whole = not event.interrupted and said.speech.complete
            said.settle(float("inf") if whole else event.playback_position)

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.off("playback_finished", self._on_finished)
            self._listening = None

    def _on_close(self, _: object) -> None:
        """The session has ended: its conversations go with it."""
        self._stop_listening()
        if (session := self._session()) is not None:
            session.off("close", self._on_close)
            _links.pop(session, None)
        for conversation in self.conversations.values():
            task = asyncio.get_running_loop().create_task(conversation.aclose(), name="higgs conversation close")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.conversations.clear()


_links: weakref.WeakKeyDictionary[_Session, _Link] = weakref.WeakKeyDictionary()


def _link(session: _Session) -> _Link:
    return _links.get(session) or _links.setdefault(session, _Link(session))


def attach(session: _Session) -> None:
    """Tell the voice exactly what the caller heard of it: call it once after ``await session.start(...)``.

    In a worker's job the TTS does this by itself. Errors: `SettingsError` when the session has no audio output yet.
    """
    if not _link(session).attach():
        raise SettingsError("the session has no audio output yet: call higgs.attach(session) after session.start()")


@dataclass(frozen=True, slots=True)
class _Options:
    model: str
    engine: Synthesizer | None
    voice: Voice | str | Path | None
    scene: str | None
    speakers: tuple[str, ...] | None
    settings: SessionSettings
    lexicon: Lexicon | None
    run_ahead_s: float

    def key(self) -> Hashable:
        """Equal for two TTS objects that mean the same voice on the same engine."""
        voice = self.voice
        if isinstance(voice, Voice):
            sounds = tuple((item.text, hashlib.sha256(item.pcm.tobytes()).digest()) for item in voice.references)
            said: Hashable = (voice.name, voice.scene, voice.speakers, voice.system, sounds)
        else:
            said = str(voice) if voice is not None else None
        return (self.model if self.engine is None else id(self.engine), said, self.scene, self.speakers)


async def _voice(options: _Options, engine: Synthesizer) -> Voice:
    """The voice that the options mean: a `Voice`, or what `find_voice` takes. Errors: `VoiceError`, `RemoteError`."""
    voice = options.voice or Voice()
    if not isinstance(voice, Voice):
        voice = await find_voice(voice, engine)
    if options.scene is not None:
        voice = replace(voice, scene=options.scene.strip() or None)
    if options.speakers is not None:
        voice = replace(voice, speakers=Voice.create(speakers=options.speakers).speakers)
    return voice


class TTS(tts.TTS[Any]):
    """One voice for the whole `AgentSession`, whichever agent or turn speaks.

    Args:
        model: what `create_backend` takes: "nano" (embedded), a hub id, a folder, or "ws://host:port" of a
            ``higgs-voice serve``, which is how jobs share one model (several with commas: the next takes over from one that
            is lost). One process makes one engine of each.
        engine: an engine of your own instead; it is used and never closed.
        token: the server's bearer token.
        voice: a `Voice`, a preset's name (one word: of the operator's folder, of the server, or of those that ship), a
            file that `Voice.save` wrote, or a description such as "feminine; warm".
        scene, speakers: replace the voice's own.
        sampling, settings: how codes are drawn; how a session cuts text and what it remembers.
        lexicon: how words of your own are said.
        run_ahead_s: audio that is generated ahead of what is played, where playing is known.
    """

    def __init__(
        self,
        *,
        model: str = "nano",
        engine: Synthesizer | None = None,
        token: str | None = None,
        voice: Voice | str | Path | None = None,
        scene: str | None = None,
        speakers: str | list[str] | tuple[str, ...] | None = None,
        sampling: Sampling | None = None,
        settings: SessionSettings | None = None,
        lexicon: Lexicon | None = None,
        run_ahead_s: float = 10.0,
    ) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True, aligned_transcript=True),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
        )
        settings = settings or SessionSettings()
        if sampling is not None:
            settings = settings.replace(sampling=sampling)
        self._opts = _Options(
            model=_with_token(model, token),
            engine=engine,
            voice=voice,
            scene=scene,
            speakers=_several(speakers),
            settings=settings,
            lexicon=lexicon,
            run_ahead_s=run_ahead_s,
        )
        self._key = self._opts.key()
        self._own: Conversation | None = None
        self._conversations: weakref.WeakSet[Conversation] = weakref.WeakSet()
        self._streams: weakref.WeakSet[SynthesizeStream | ChunkedStream] = weakref.WeakSet()
        self._warming: asyncio.Task[None] | None = None

    @property
    def options(self) -> _Options:
        """What the next stream takes; streams keep what they began with."""
        return self._opts

    @property
    def model(self) -> str:
        if self._opts.engine is None:
            return _without_token(self._opts.model)
        with suppress(HiggsVoiceError):
            return self._opts.engine.info.model
        return "unknown"

    @property
    def provider(self) -> str:
        return PROVIDER

    def conversation(self, session: _Session | None = None) -> Conversation:
        """The conversation of an `AgentSession`; without one, that of the session this is called in, or this TTS's own."""
        session = session or _current_session()
        if session is None:
            if self._own is None:
                self._own = Conversation(self._opts)
                self._conversations.add(self._own)
            return self._own
        link = _link(session)
        conversation = link.conversations.get(self._key)
        if conversation is None:
            conversation = link.conversations[self._key] = Conversation(self._opts)
        self._conversations.add(conversation)
        link.listen()
        return conversation

    def stream(self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> SynthesizeStream:
        stream = SynthesizeStream(tts=self, conn_options=conn_options, conversation=self.conversation())
        self._streams.add(stream)
        return stream

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> ChunkedStream:
        stream = ChunkedStream(tts=self, input_text=text, conn_options=conn_options, conversation=self.conversation())
        self._streams.add(stream)
        return stream

    def update_options(
        self,
        *,
        voice: Voice | str | Path | None = None,
        scene: str | None = None,
        speakers: str | list[str] | tuple[str, ...] | None = None,
        sampling: Sampling | None = None,
        lexicon: Lexicon | None = None,
        context: Literal["keep", "new"] = "new",
    ) -> None:
        """Change the voice or how it speaks, from the next speech on; what is being said is not cut.

        A new voice, scene or description begins a new context, because the old sound would hold the voice back;
        ``context="keep"`` keeps it.
        """
        options = self._opts
        if voice is not None:
            options = replace(options, voice=voice)
        if scene is not None:
            options = replace(options, scene=scene)
        if speakers is not None:
            options = replace(options, speakers=_several(speakers))
        if sampling is not None:
            options = replace(options, settings=options.settings.replace(sampling=sampling))
        if lexicon is not None:
            options = replace(options, lexicon=lexicon)
        self._opts = options
        same = voice is None and scene is None and speakers is None
        for conversation in list(self._conversations):
            conversation.change(options, "keep" if same else context)

    def prewarm(self) -> None:
        """Load or connect the engine and prefill the voice, in the background. In a job this also attaches the tracker of
        what was heard."""
        session = _job_session()
        if session is not None:
            _link(session).attach()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._warming is None or self._warming.done():
            self._warming = loop.create_task(self._warm(self.conversation(session)), name="higgs prewarm")

    async def _warm(self, conversation: Conversation) -> None:
        try:
            await conversation.ready()
        except HiggsVoiceError as error:
            log.warning("the voice could not be prepared: %s", error)

    async def aclose(self) -> None:
        """End its streams and every conversation it began."""
        if self._warming is not None:
            await utils.aio.cancel_and_wait(self._warming)
        for stream in list(self._streams):
            await stream.aclose()
        for conversation in list(self._conversations):
            await conversation.aclose()
        self._own = None

    async def __aenter__(self) -> TTS:
        return self


class SynthesizeStream(tts.SynthesizeStream):
    """One speech: text in as it streams, frames and timed words out."""

    def __init__(self, *, tts: TTS, conn_options: APIConnectOptions, conversation: Conversation) -> None:
        self.conversation = conversation
        self._handle = _current_handle()
        self._options = tts.options
        self._said: _Said | None = None
        super().__init__(tts=tts, conn_options=conn_options)

    async def __anext__(self) -> tts.SynthesizedAudio:
        audio = await super().__anext__()
        if self._said is not None:
            audio.frame.userdata[TAG] = self._said.speech.id
            self._said.taken = True
        return audio

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("higgs_"),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            mime_type="audio/pcm",
            stream=True,
        )
        first = await anext(self._input_ch, None)
        while isinstance(first, self._FlushSentinel):
            first = await anext(self._input_ch, None)
        if first is None:
            return  # nothing was ever pushed
        session = await _ready(self, self.conversation, self._conn_options.timeout)
        said = self._said = self.conversation.speak(session, self._handle)
        output_emitter.start_segment(segment_id=said.speech.id)
        self._mark_started()
        source = _Source(said.speech)
        source.feed(first)
        feeding = asyncio.create_task(self._feed(source), name="higgs text")
        try:
            await _speak(self, said, source, output_emitter, self._options, self._conn_options.timeout)
            output_emitter.end_segment()
        finally:
            await utils.aio.cancel_and_wait(feeding)
            if not said.speech.complete:
                said.speech.stop()
                if not said.captured and self.conversation.said.get(said.speech.id) is said and _is_tracked(self):
                    said.settle(0.0)

    async def _feed(self, source: _Source) -> None:
        async for item in self._input_ch:
            if isinstance(item, self._FlushSentinel):
                source.speech.flush()
            else:
                source.feed(item)
        source.end()


class ChunkedStream(tts.ChunkedStream):
    """One text at once. What was made in full counts as heard."""

    def __init__(
        self, *, tts: TTS, input_text: str, conn_options: APIConnectOptions, conversation: Conversation
    ) -> None:
        self.conversation = conversation
        self._options = replace(tts.options, run_ahead_s=float("inf"))
        super().__init__(tts=tts, input_text=input_text, conn_options=conn_options)

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("higgs_"), sample_rate=SAMPLE_RATE, num_channels=1, mime_type="audio/pcm"
        )
        if not self.input_text.strip():
            return
        session = await _ready(self, self.conversation, self._conn_options.timeout)
        said = self.conversation.speak(session, None)
        source = _Source(said.speech)
        source.feed(self.input_text)
        source.end()
        heard_s = 0.0
        try:
            await _speak(self, said, source, output_emitter, self._options, self._conn_options.timeout)
            heard_s = float("inf")
        finally:
            said.settle(heard_s)


class _Source:
    """The text of a speech, kept so that timed words carry it exactly as it was written."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech
        self.ended = asyncio.Event()
        self.text = ""
        self._given = 0

    def feed(self, text: str) -> None:
        self.text += text
        self.speech.feed(text)

    def end(self) -> None:
        self.speech.end()
        self.ended.set()

    def timed(self, word: Word) -> TimedString:
        """The word with what stands before it, so that the words together are the text."""
        text = self.text[self._given : word.char_end]
        self._given = word.char_end
        return TimedString(text, start_time=word.start_s, end_time=word.end_s)


async def _ready(stream: SynthesizeStream | ChunkedStream, conversation: Conversation, timeout: float) -> VoiceSession:
    stream._connection_reused = conversation.open  # pyright: ignore[reportPrivateUsage]
    began = time.perf_counter()
    try:
        session = await asyncio.wait_for(conversation.ready(), timeout)
    except TimeoutError:
        raise APITimeoutError(f"the Higgs engine was not ready within {timeout:.1f} s") from None
    except HiggsVoiceError as error:
        raise api_error(error) from error
    stream._acquire_time = time.perf_counter() - began  # pyright: ignore[reportPrivateUsage]
    return session


async def _speak(
    stream: SynthesizeStream | ChunkedStream,
    said: _Said,
    source: _Source,
    emitter: tts.AudioEmitter,
    options: _Options,
    timeout: float,
) -> None:
    """Push what the speech gives. Errors: `APIError`."""
    pushed = 0
    try:
        async with aclosing(said.speech.events()) as events:
            while (item := await _next(events, said, source, timeout)) is not None:
                match item:
                    case PcmChunk():
                        emitter.push(item.pcm)
                        pushed += item.samples
                        await _keep_pace(said, pushed / SAMPLE_RATE, options.run_ahead_s, stream)
                    case Word():
                        emitter.push_timed_transcript(source.timed(item))
                    case _:
                        if item.error is not None:
                            log.warning("a chunk was ended early: %s", item.error)
    except SynthesisError as error:
        if not pushed:
            raise api_error(error) from error
        log.warning("part of a speech could not be spoken: %s", error)
    except HiggsVoiceError as error:
        raise api_error(error) from error
    if not pushed and source.text.strip():
        emitter.push(_NOTHING_SAID)


async def _next(events: Any, said: _Said, source: _Source, timeout: float) -> Any:
    """The next thing of a speech; None at its end. The engine may take `timeout` seconds for it once it has all of the text
    and is not busy with earlier speeches. Errors: `APITimeoutError`."""
    task = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=timeout)
            if done:
                return task.result()
            speeches = [item.speech for item in said.conversation.said.values() if item is not said]
            earlier = [speech for speech in speeches if not speech.finished and not speech.stopped]
            if source.ended.is_set() and not earlier:
                raise APITimeoutError(f"the Higgs engine gave nothing for {timeout:.1f} s")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _keep_pace(
    said: _Said, pushed_s: float, run_ahead_s: float, stream: SynthesizeStream | ChunkedStream
) -> None:
    """Wait while more than `run_ahead_s` of audio is ahead of what is played, where playing is known."""
    loop = asyncio.get_running_loop()
    while not said.settled and _is_tracked(stream):
        ahead = pushed_s - said.playhead_s(loop.time()) - run_ahead_s
        if ahead <= 0.0:
            return
        if said.started_at is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(said.captured_event.wait(), 0.1)
            if said.captured and said.started_at is None:
                await asyncio.sleep(0.05)
        else:
            await asyncio.sleep(min(max(ahead, 0.01), 0.5))


def _is_tracked(stream: SynthesizeStream | ChunkedStream) -> bool:
    conversation = stream.conversation
    return any(link.tracked for link in _links.values() if conversation in link.conversations.values())


def api_error(error: HiggsVoiceError) -> APIError:
    """The framework's error for ours: what may pass is tried again, what will not is not."""
    match error:
        case EngineBusyError():
            return APIStatusError(str(error), status_code=429)
        case ConnectionLostError() | EngineDiedError():
            return APIConnectionError(str(error))
        case RefusedError():
            return APIStatusError(str(error), status_code=403)
        case EngineClosedError():
            return APIStatusError(str(error), status_code=499)
        case SynthesisError():
            return APIError(str(error), retryable=True)
        case _:
            return APIError(str(error), retryable=False)


def _current_session() -> _Session | None:
    """The session whose activity this runs in. The framework has no public way to ask, so that its absence is no error."""
    try:
        from livekit.agents.voice.agent_activity import (
            _AgentActivityContextVar,  # pyright: ignore[reportPrivateUsage]
        )

        activity = _AgentActivityContextVar.get(None)
    except ImportError:
        return None
    return activity.session if activity is not None else None


def _current_handle() -> Any:
    try:
        from livekit.agents.voice.agent_activity import (
            _SpeechHandleContextVar,  # pyright: ignore[reportPrivateUsage]
        )

        return _SpeechHandleContextVar.get(None)
    except ImportError:
        return None


def _job_session() -> _Session | None:
    """The session of the job this runs in."""
    context = get_job_context(required=False)
    if context is None:
        return None
    try:
        return context.primary_session
    except RuntimeError:
        return None


def _several(speakers: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...] | None:
    if speakers is None:
        return None
    return (speakers,) if isinstance(speakers, str) else tuple(speakers)


def _servers(model: str) -> list[SplitResult]:
    """The servers that a model's name names; none if it is no server."""
    if not model.startswith(("ws://", "wss://")):
        return []
    return [urlsplit(part.strip()) for part in model.split(",")]


def _with_token(model: str, token: str | None) -> str:
    if token is None or not (servers := _servers(model)):
        return model
    named = (item._replace(netloc=f"{quote(token, safe='')}@{item.netloc}") for item in servers)
    return ",".join(urlunsplit(item) for item in named)


def _without_token(model: str) -> str:
    servers = (item._replace(netloc=item.netloc.rpartition("@")[2]) for item in _servers(model))
    return ",".join(urlunsplit(item) for item in servers) or model


class EngineLoad:
    """How full a server is, for LiveKit's dispatch: ``AgentServer(load_fnc=EngineLoad("ws://gpu-1:8765"))``.

    The framework asks often and from a thread, so the answer is the last one of a thread that polls ``/v1/load``. A server that
    does not answer, or shuts down, is full.
    """

    def __init__(self, model: str = f"ws://127.0.0.1:{DEFAULT_PORT}", *, token: str | None = None) -> None:
        servers = _servers(model)
        if not servers:
            raise SettingsError(f"the load is that of a server, ws://host:port, not of {model!r}")
        self._questions: list[tuple[str, str | None]] = []
        for item in servers:
            own, _, place = item.netloc.rpartition("@")
            scheme = "https" if item.scheme == "wss" else "http"
            url = urlunsplit(item._replace(scheme=scheme, netloc=place, path="/v1/load"))
            self._questions.append((url, unquote(own) or token))
        self._load = 1.0
        self._asked_at = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self) -> float:
        """0 … 1, at once (the very first call waits for an answer)."""
        with self._lock:
            self._asked_at = time.monotonic()
            if self._thread is None or not self._thread.is_alive():
                self._load = self._ask()
                self._thread = threading.Thread(target=self._poll, name="higgs load", daemon=True)
                self._thread.start()
        return self._load

    def _poll(self) -> None:
        """Until nobody has asked for a while."""
        while time.monotonic() - self._asked_at < 30.0:
            time.sleep(_POLL_S)
            self._load = self._ask()

    def _ask(self) -> float:
        """The load of the first server that answers: it is the one that new calls go to."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for url, token in self._questions:
            request = urllib.request.Request(url)
            if token:
                request.add_header("Authorization", f"Bearer {token}")
            with suppress(OSError, ValueError, KeyError, TypeError), opener.open(request, timeout=2.0) as answer:
                return min(1.0, max(0.0, float(json.load(answer)["load"])))
        return 1.0


load_fnc = EngineLoad()
"""The load of the server on this machine's default port."""
