"""The voice of one `AgentSession`, and its speeches until it is known how much of each was heard."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from livekit.agents import utils

from ...config import engine_kind
from ...conversation.session import SessionSettings, VoiceSession
from ...conversation.snapshot import Snapshot
from ...conversation.speech import Speech
from ...conversation.synthesizer import Synthesizer
from ...conversation.voice import Voice
from ...errors import ConnectionLostError, EngineClosedError, HiggsVoiceError, SettingsError, SnapshotError
from ...text import Lexicon
from .. import engines
from .framework import log
from .options import Options, voice_of, without_token

FIRST_LINE_S = 1.0
"""How long `Conversation.ready` waits for a server that has not answered yet. The line goes on being made meanwhile, and who asks
again waits for the same one; but behind a `FallbackAdapter` the next TTS speaks soon."""

Refused = Callable[["Conversation", Options, Options], None]
"""Told of a change that could not be made: the conversation, what was wanted, and what it keeps."""


@dataclass(slots=True, eq=False)
class Said:
    """A speech, and where the framework is with it."""

    speech: Speech
    conversation: Conversation
    handle: Any = None
    """The framework's `SpeechHandle`, where it is known."""
    joined: bool = False
    """The framework plays it with others as one segment, and its frames do not say whose they are."""
    taken: bool = False
    """Some of its audio was taken from the stream."""
    captured: bool = False
    """Some of its audio reached the output."""
    captured_event: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float | None = None
    """Event loop time at which it began to play."""
    paused_at: float | None = None
    text_ended: bool = False
    """No more text comes."""
    moved_at: float = 0.0
    """Event loop time of its last text or sound."""
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
        played = (self.paused_at if self.paused_at is not None else now) - self.started_at
        return min(max(played, 0.0), self.speech.audio_s)


@dataclass(frozen=True, slots=True)
class _Change:
    """Another voice, from the next speech on."""

    options: Options
    context: Literal["keep", "new"]
    refused: Refused


class Conversation:
    """One voice on one engine, for as long as an `AgentSession` lives (or a TTS that is used without one)."""

    def __init__(self, options: Options, siblings: dict[Hashable, Conversation] | None = None) -> None:
        self._options = options
        """Engine and voice are these; how a speech is spoken is what its own TTS says."""
        self._session: VoiceSession | None = None
        self._engine: Synthesizer | None = None
        self._borrowed: str | None = None
        self._opening = asyncio.Lock()
        self._changes: deque[_Change] = deque()
        self._changing: asyncio.Task[None] | None = None
        self._closed = False
        self._snapshot: bytes | None = None
        self._manner: tuple[SessionSettings, Lexicon | None] | None = None
        """How the last speech was spoken, as its TTS says; None: as a snapshot says."""
        self._lexicon: Lexicon | None = None
        """Of the call that was taken up, where a TTS has none."""
        self.siblings: dict[Hashable, Conversation] = {} if siblings is None else siblings
        """Those of its `AgentSession`, by engine and voice."""
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        """The TTS objects that speak in it."""
        self.said: OrderedDict[str, Said] = OrderedDict()
        """Speeches that are not settled, in the order in which they began."""

    @property
    def session(self) -> VoiceSession | None:
        """The voice session; None before the first use."""
        return self._session

    @property
    def open(self) -> bool:
        return self._session is not None

    @property
    def closed(self) -> bool:
        return self._closed

    async def ready(self) -> VoiceSession:
        """The session on a started engine, with the voice that was last asked for. Errors: `HiggsVoiceError`; the next call tries
        again. Where a borrowed engine is dead, the conversation goes on with another one."""
        until = asyncio.get_running_loop().time() + FIRST_LINE_S
        async with self._opening:
            if self._closed:
                raise EngineClosedError("the conversation has ended")
            if self._borrowed is not None and not engines.serves(self._borrowed, self._engine):
                await self._leave_engine(self._borrowed)
            if self._session is None:
                self._session = await self._open(until)
            await self._take_changes(self._session)
            return self._session

    async def _open(self, until: float) -> VoiceSession:
        options = self._options
        engine = self._engine = options.engine or self._engine
        if engine is None:
            engine = self._engine = await engines.borrow(options.model)
            self._borrowed = options.model
        await self._start(engine, until)
        settings = _paced(options.settings)
        clock = asyncio.get_running_loop().time
        if self._snapshot is not None:
            lexicon = options.lexicon or self._lexicon
            session = await VoiceSession.restore(
                engine, self._snapshot, settings=settings, lexicon=lexicon, clock=clock
            )
            self._snapshot = self._manner = None
        else:
            voice = await self._first_voice(engine)
            session = VoiceSession(engine, voice=voice, settings=settings, lexicon=options.lexicon, clock=clock)
            await session.start()
            self._manner = (options.settings, options.lexicon)
        return session

    async def _first_voice(self, engine: Synthesizer) -> Voice:
        """What was last asked for, of those that can be had."""
        while self._changes:
            change = self._changes[-1]
            try:
                voice = await voice_of(change.options, engine)
            except HiggsVoiceError as error:
                self._changes.remove(change)  # not before: who waits for it may be cancelled
                self._refuse(change, error)
                continue
            self._options = change.options
            while self._changes.popleft() is not change:
                pass
            return voice
        return await voice_of(self._options, engine)

    def _refuse(self, change: _Change, error: HiggsVoiceError) -> None:
        log.error("the voice stays as it was: %s", error)
        change.refused(self, change.options, self._options)

    async def _start(self, engine: Synthesizer, until: float) -> None:
        if self._borrowed is None or engine_kind(self._borrowed) != "remote":
            return await engine.start()
        try:
            return await asyncio.wait_for(engine.start(), max(0.05, until - asyncio.get_running_loop().time()))
        except TimeoutError:
            where = without_token(self._borrowed)
            raise ConnectionLostError(
                f"no higgs-voice server answers at {where}; start one with `higgs-voice serve`"
            ) from None

    async def _leave_engine(self, borrowed: str) -> None:
        """Give a dead engine back, and keep what was heard for the next one."""
        if self._session is not None:
            try:
                self._snapshot = self.snapshot()
            except HiggsVoiceError as error:
                log.warning("the voice begins anew: %s", error)
            session, self._session = self._session, None
            self._forget_said()
            await session.aclose()
        self._engine = self._borrowed = None
        await engines.give_back(borrowed)

    def snapshot(self) -> bytes:
        """The call's voice and what was heard of it, for `restore` in another job; changes nothing here.

        Errors: `SnapshotError` before the first use.
        """
        if self._session is None:
            raise SnapshotError("this conversation has no snapshot: it has not begun, or has ended")
        now = asyncio.get_running_loop().time()
        return self._session.snapshot(
            {
                said.speech.id: said.playhead_s(now) if said.captured else 0.0
                for said in self.said.values()
                if said.handle is not None
            }
        )

    def restore(self, snapshot: bytes) -> None:
        """Go on with a call that was begun in another job: its voice, and what it has said; how it speaks is the options'.

        Before the first use, so before the `AgentSession` starts. Errors: `SnapshotError`; what only the engine can tell
        (codes of another codec) comes with `ready`.
        """
        if self._session is not None or self._closed:
            raise SnapshotError("a snapshot is taken up before a conversation begins; this one has")
        lexicon = Snapshot.parse(snapshot).lexicon
        try:
            self._lexicon = Lexicon(lexicon) if lexicon is not None else None
        except SettingsError as error:
            raise SnapshotError(f"the snapshot's settings cannot be taken up: {error}") from error
        self._snapshot = snapshot

    def fork(self) -> Conversation:
        """Another one that goes on from what was heard of this one."""
        fork = Conversation(self._options, self.siblings)
        fork._snapshot = self.snapshot() if self._session is not None else self._snapshot
        fork._lexicon = self._lexicon
        return fork

    def speak(self, session: VoiceSession, handle: Any, options: Options) -> Said:
        """Begin a speech, as its TTS says. What the framework has thrown away since the last one leaves the context first."""
        for said in list(self.said.values()):
            if said.speech.settled:  # by the clock, where nobody reports
                del self.said[said.speech.id]
            elif not said.captured and said.handle is not None and (said.handle.interrupted or said.handle.done()):
                said.settle(0.0)
        session.by_clock = handle is None
        manner = (options.settings, options.lexicon)
        if manner != self._manner:
            kept, self._manner = session.settings, manner
            session.settings = _paced(options.settings).replace(window=kept.window, call_id=kept.call_id)
            session.lexicon = options.lexicon or self._lexicon
        speech = session.speak()
        said = self.said[speech.id] = Said(speech, self, handle, moved_at=asyncio.get_running_loop().time())
        if handle is not None:
            handle.add_done_callback(lambda _: self._handle_done(said))  # pyright: ignore[reportUnknownLambdaType]
        return said

    def settle(self, said: Said, heard_s: float) -> None:
        """For `Said.settle`."""
        self.said.pop(said.speech.id, None)
        if self._session is not None:
            self._session.settle(said.speech.id, heard_s)

    def change(self, options: Options, context: Literal["keep", "new"], refused: Refused) -> None:
        """Take another voice from the next speech on. `refused` is told where that voice cannot be had."""
        self._changes.append(_Change(options, context, refused))
        if self._session is not None and (self._changing is None or self._changing.done()):
            self._changing = asyncio.get_running_loop().create_task(self._change(), name="higgs change")

    async def _change(self) -> None:
        """Now, and not when the next speech waits for it."""
        async with self._opening:
            if self._session is not None:
                await self._take_changes(self._session)

    async def _take_changes(self, session: VoiceSession) -> None:
        while self._changes:
            change = self._changes[0]
            try:
                voice = await voice_of(change.options, session.engine)
                await session.update(voice=voice, context=change.context)
                self._options = change.options
            except HiggsVoiceError as error:
                self._refuse(change, error)
            self._changes.popleft()  # not before: who waits for it may be cancelled

    async def aclose(self) -> None:
        """Stop everything and free the engine's state; idempotent."""
        self._closed = True
        if self._changing is not None:
            await utils.aio.cancel_and_wait(self._changing)
        self._forget_said()
        async with self._opening:
            session, self._session = self._session, None
            borrowed, self._borrowed = self._borrowed, None
        if session is not None:
            await session.aclose()
        if borrowed is not None:
            await engines.give_back(borrowed)

    def _forget_said(self) -> None:
        for said in self.said.values():
            said.settled = True
            said.captured_event.set()
        self.said.clear()

    def _handle_done(self, said: Said) -> None:
        """The framework is finished with the turn: what it has not reported by now it never will."""
        if not said.captured:
            said.settle(0.0)
        elif not said.settled and said.handle.interrupted:
            said.settle(said.playhead_s(asyncio.get_running_loop().time()))


def _paced(settings: SessionSettings) -> SessionSettings:
    """How far to run ahead is decided here, by what is played."""
    return settings.replace(run_ahead_s=min(settings.run_ahead_s, 0.5))
