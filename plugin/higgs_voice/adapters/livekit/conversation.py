"""The voice of one `AgentSession`, and its speeches until it is known how much of each was heard."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

from livekit.agents import utils

from ...conversation.session import VoiceSession
from ...conversation.snapshot import Snapshot
from ...conversation.speech import Speech
from ...conversation.synthesizer import Synthesizer
from ...errors import EngineClosedError, HiggsVoiceError, SnapshotError
from .. import engines
from .framework import log
from .options import Options, voice_of


@dataclass(slots=True, eq=False)
class Said:
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

    def __init__(self, options: Options) -> None:
        self._options = options
        self._session: VoiceSession | None = None
        self._engine: Synthesizer | None = None
        self._borrowed: str | None = None
        self._opening = asyncio.Lock()
        self._changing: asyncio.Task[None] | None = None
        self._closed = False
        self._snapshot: bytes | None = None
        self.said: OrderedDict[str, Said] = OrderedDict()
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
                # how far to run ahead is decided here, by what is played
                settings = options.settings.replace(run_ahead_s=min(options.settings.run_ahead_s, 0.5))
                clock = asyncio.get_running_loop().time
                if self._snapshot is not None:
                    self._session = await VoiceSession.restore(
                        engine, self._snapshot, settings=settings, lexicon=options.lexicon, clock=clock
                    )
                    self._snapshot = None
                else:
                    voice = await voice_of(options, engine)
                    session = VoiceSession(engine, voice=voice, settings=settings, lexicon=options.lexicon, clock=clock)
                    await session.start()
                    self._session = session
        while self._changing is not None:  # settings changed before this speech hold for it
            await asyncio.shield(self._changing)
        return self._session

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
        Snapshot.parse(snapshot)
        self._snapshot = snapshot

    def speak(self, session: VoiceSession, handle: Any) -> Said:
        """Begin a speech. What the framework has thrown away since the last one leaves the context first."""
        for said in list(self.said.values()):
            if said.speech.settled:  # by the clock, where nobody reports
                del self.said[said.speech.id]
            elif not said.captured and said.handle is not None and (said.handle.interrupted or said.handle.done()):
                said.settle(0.0)
        if self._session is not None:
            self._session.by_clock = handle is None
        speech = session.speak()
        said = self.said[speech.id] = Said(speech, self, handle)
        if handle is not None:
            handle.add_done_callback(lambda _: self._handle_done(said))  # pyright: ignore[reportUnknownLambdaType]
        return said

    def settle(self, said: Said, heard_s: float) -> None:
        """For `Said.settle`."""
        self.said.pop(said.speech.id, None)
        if self._session is not None:
            self._session.settle(said.speech.id, heard_s)

    def change(self, options: Options, context: Literal["keep", "new"]) -> None:
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
                            voice=await voice_of(options, self._session.engine),
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

    def _handle_done(self, said: Said) -> None:
        """The framework is finished with the turn: what it has not reported by now it never will."""
        if not said.captured:
            said.settle(0.0)
        elif not said.settled and said.handle.interrupted:
            said.settle(said.playhead_s(asyncio.get_running_loop().time()))
