"""One voice through a whole conversation: speeches in, sound out, and a context that holds what was heard."""

from __future__ import annotations

import logging
import math
import random
import time
import uuid
from collections.abc import AsyncIterable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from .. import telemetry
from ..config import Pauses, Sampling, Settings, Window
from ..errors import EngineClosedError, SettingsError, SnapshotError
from ..text.chunker import ChunkerSettings
from ..text.lexicon import Lexicon
from .context import ContextState, Entry, RollingContext, append, drop_oldest
from .snapshot import Snapshot
from .speech import Speech
from .synthesizer import Codes, ContextSpec, Exchange, SpeakRequest, Synthesizer, VoicePrompt
from .timing import Rate
from .voice import Voice

log = logging.getLogger("higgs_voice.session")

ROWS_PER_CHAR = 2.2
"""Audio frames a character of text may take, for judging whether a chunk still fits (slow speech is about 1.7)."""
LIMIT_REFILL = 0.7
"""Where the model's limit trims a context, it is trimmed to this share of the limit, so that not every chunk slides it."""
MAX_BEHIND = 32
"""Exchanges that may be settled behind a speech that nobody settles. It then counts as played at the pace of the clock, so
that a context does not grow for the rest of a call."""


class SessionSettings(Settings):
    """How a session speaks and what it remembers."""

    sampling: Sampling = Field(default_factory=Sampling)
    window: Window = Field(default_factory=Window)
    chunker: ChunkerSettings = Field(default_factory=ChunkerSettings)
    run_ahead_s: float = Field(default=10.0, gt=0.0)
    """Generation stops when this much audio waits for the consumer."""
    settle_timeout_s: float = Field(default=0.3, ge=0.0)
    """How long the speech after a stopped one waits to be told what was heard of it."""
    normalize: bool = True
    """Whether written text (numbers, markdown, emoji) is made speakable."""
    language: str = "en"
    pauses: Pauses | None = Field(default_factory=Pauses)
    """Silence between the chunks of a speech; None leaves it as the voice makes it."""
    crossfade: bool = True
    """Whether chunks whose waveforms do not meet are joined without a click."""
    speech_rate: float = Field(default=1.0, ge=0.5, le=2.0)
    """How fast it is spoken, against the voice's own pace, at the same pitch; from the next speech on. Other than 1 needs
    the extra ``rate``."""
    call_id: str | None = Field(default=None, min_length=1, max_length=80, pattern=r"^[^\s~/]+$")
    """Of the call in your own books, for log lines and spans; it travels to a server in the session's id. None: that id."""
    log_text: bool = False
    """Whether log lines and spans hold what the agent says. It may repeat what the caller said."""


@dataclass(frozen=True, slots=True)
class SessionStats:
    """Where a session stands."""

    exchanges: int
    """In the context now, pinned one included."""
    context_s: float
    """Seconds of audio in the window."""
    pinned: bool
    provisional: int
    """Exchanges generated and not yet known to be heard."""
    rows: int
    """What the context takes of the model's positions."""


class VoiceSession:
    """A conversation's voice on one engine.

    Speeches are spoken one after the other, in the order of `speak`. The context remembers of each what was played:
    tell it by `settle` (and `heard`, while it plays). What nobody settles counts as played at the pace of the clock.

    Args:
        engine: any `Synthesizer`, started; it may serve many sessions.
        voice: who speaks; None is the model's own choice, kept by the context.
        clock: seconds, monotonic. rng: seeds of chunks whose sampling has none.
    """

    def __init__(
        self,
        engine: Synthesizer,
        *,
        voice: Voice | None = None,
        settings: SessionSettings | None = None,
        lexicon: Lexicon | None = None,
        session_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.engine = engine
        self.settings = settings or SessionSettings()
        named = self.settings.call_id
        self.id = session_id or (
            telemetry.session_name(named, uuid.uuid4().hex[:12]) if named is not None else uuid.uuid4().hex
        )
        self.call_id = named or telemetry.call_of(self.id)
        """Of the call, in log lines and spans."""
        self.voice = voice or Voice()
        self.lexicon = lexicon
        self.clock = clock
        self.by_clock = True
        """Whether a speech that nobody settles counts as played by the clock. A framework that always tells says False."""
        self.rate = Rate()
        self._rng = rng or random.Random()
        self._prompt: VoicePrompt | None = None
        self._context = RollingContext(window=self.settings.window, pin=not self.voice.references)
        self._speeches: dict[str, Speech] = {}
        self._last: Speech | None = None
        self._count = 0
        self._pending: tuple[Voice, VoicePrompt, bool] | None = None
        self._closed = False
        self._warned_limit = False

    # Life

    async def start(self) -> None:
        """Resolve the voice (clips are encoded) and let the engine prefill it.

        Errors: `VoiceError`, `EngineError`; `EngineClosedError` after `aclose`, or where the session is closed meanwhile.
        """
        self._check_open()
        telemetry.load_tracing()
        await self.engine.start()
        if self._prompt is None:
            self.voice = await self.voice.resolve(self.engine)
            prompt = await self.voice.prompt(self.engine)
            self._check_open()
            self._prompt = prompt
            self._prepare()
            telemetry.event(log, "session started", call_id=self.call_id, session=self.id, model=self.engine.info.model)

    async def aclose(self) -> None:
        """Stop everything and free the engine's state of this session; idempotent."""
        if not self._closed:
            telemetry.event(log, "session closed", call_id=self.call_id, session=self.id, turns=self._count)
        self._closed = True
        speeches = list(self._speeches.values())
        for speech in speeches:
            speech.stop()
        self.engine.close_session(self.id)
        for speech in speeches:
            await speech.aclose()
            speech.trace.close()
        self._speeches.clear()

    async def __aenter__(self) -> VoiceSession:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Speaking

    def speak(self, text: str | AsyncIterable[str] | None = None) -> Speech:
        """Begin a turn. With text it is fed and ended (a stream is fed as it comes); without, use `feed` and `end`.

        Turns are spoken one after another: one whose sound is not taken stands still after `SessionSettings.run_ahead_s`, and with it
        those behind it, until it is read on or stopped.

        Errors: `EngineClosedError` after `aclose`.
        """
        self._check_open()
        self._settle_by_clock()
        self._count += 1
        speech = Speech(self, f"{self.id}/{self._count}", previous=self._last)
        self._speeches[speech.id] = speech
        self._last = speech
        speech.begin(text)
        return speech

    def interrupt(self) -> list[str]:
        """Barge-in: stop every speech that is being generated or may still be playing; their ids, in order."""
        ids: list[str] = []
        for speech in list(self._speeches.values()):
            if not speech.settled:
                speech.stop()
                ids.append(speech.id)
        return ids

    def heard(self, speech_id: str, heard_s: float) -> None:
        """Progress: this much of the speech has been played, in seconds from its first sample. Cuts nothing.

        Errors: `SettingsError` for a position that is not a number.
        """
        heard_s = _position(heard_s)
        speech = self._speeches.get(speech_id)
        if speech is None or speech.settled:
            return
        for record in speech.records:
            if not record.finished or record.end_s > heard_s + 1e-6:
                break
            if not record.settled:
                record.settled = True
                self._context.settle(record.entry)

    def settle(self, speech_id: str, heard_s: float, *, words: int | None = None) -> None:
        """Final: this much of the speech was played; the rest leaves the context without a trace.

        heard_s: seconds from the speech's first sample. words: how many of the speech's words the framework holds for
        spoken, where it knows; the text is then cut there. Unknown ids, and ids that were settled, are ignored. Speeches may
        be settled in any order. Errors: `SettingsError` for a position that is not a number.
        """
        heard_s = _position(heard_s)
        speech = self._speeches.get(speech_id)
        if speech is None or speech.settled:
            return
        if not speech.finished or heard_s < speech.audio_s - 1e-3:
            speech.stop()
        for record in speech.records:
            if not record.settled:
                record.entry.exchange = record.heard_exchange(heard_s, words)
                record.settled = True
                self._context.settle(record.entry)
        self._note_heard(speech, heard_s)
        speech.mark_settled()
        if speech.finished:
            self._forget(speech)
        self._settle_overdue()
        self._prepare()

    async def update(
        self,
        *,
        voice: Voice | None = None,
        sampling: Sampling | None = None,
        lexicon: Lexicon | None = None,
        context: Literal["new", "keep"] = "new",
    ) -> None:
        """Change settings from the next speech on.

        A new voice begins a new context by default: the old one's sound would pull it back to the old voice, which is
        what a rolling context is for. ``context="keep"`` keeps it, for a scene or a description that only shades it.
        Errors: `VoiceError`; the session then goes on as before. `EngineClosedError` after `aclose`.
        """
        self._check_open()
        if sampling is not None:
            self.settings = self.settings.replace(sampling=sampling)
        if lexicon is not None:
            self.lexicon = lexicon
        if voice is not None:
            resolved = await voice.resolve(self.engine)
            self._pending = (resolved, await resolved.prompt(self.engine), context == "new")
            if self._last is None or self._last.finished:
                self.apply_pending()

    # What is known

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What the context holds now, pinned exchange first, with what has been generated and may still be cut."""
        return self._context.state().exchanges

    @property
    def context_text(self) -> str:
        """The texts of the context, a line each."""
        return "\n".join(item.text for item in self.exchanges)

    @property
    def stats(self) -> SessionStats:
        state = self._context.state()
        return SessionStats(
            exchanges=len(state.exchanges),
            context_s=state.seconds,
            pinned=state.pinned is not None,
            provisional=sum(not entry.settled for entry in self._context.entries),
            rows=self.engine.count_rows(self._spec(state)) if self._prompt is not None else 0,
        )

    # Handing a call over

    def snapshot(self, heard: Mapping[str, float] | None = None) -> bytes:
        """What the next speech would start from, to be taken up by `restore` here or on another worker: voice, settings,
        lexicon, and the text and codes of the context. Changes nothing; the session may go on.

        Of what may still be cut (a speech that is running, playing or stopped and not settled) it holds what has been played:
        the seconds that `heard` gives for its id, or those by the clock. Text that has not been spoken is not in it.
        Errors: `SnapshotError` before `start` and after `aclose`; `SettingsError` for a position that is not a number.
        """
        if self._prompt is None or self._closed:
            raise SnapshotError("only a session that has been started and is not closed has a snapshot")
        voice, state = self.voice, ContextState()
        if self._pending is not None:
            voice = self._pending[0]
        if self._pending is None or not self._pending[2]:
            known = {name: _position(seconds) for name, seconds in (heard or {}).items()}
            cut = {
                id(record.entry): record.heard_exchange(known.get(speech.id, speech.heard_by_clock()), None)
                for speech in self._speeches.values()
                for record in speech.records
                if not record.settled
            }
            state = self._context.state_if(lambda entry: cut.get(id(entry), entry.exchange))
        return Snapshot.of(
            info=self.engine.info,
            voice=voice,
            state=state,
            settings=self.settings.model_dump(mode="json"),
            lexicon=self.lexicon,
            s_per_unit=self.rate.s_per_unit,
            call_id=self.call_id,
            turns=self._count,
        ).dump()

    @classmethod
    async def restore(
        cls,
        engine: Synthesizer,
        snapshot: bytes,
        *,
        settings: SessionSettings | None = None,
        lexicon: Lexicon | None = None,
        session_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> VoiceSession:
        """Go on with a conversation on this engine, which must have the codec it was spoken with; a started session.

        Greedy and in float32 the codes are those that the old session would have given. settings, lexicon: instead of the
        snapshot's; the call keeps its `call_id` unless they have one. session_id: a new one unless given; give the old one only where no other session of the engine has it.
        Errors: `SnapshotError`, and those of `start`.
        """
        saved = Snapshot.parse(snapshot)
        await engine.start()
        saved.check(engine.info)
        try:
            settings = settings or SessionSettings(**saved.settings)
            if settings.call_id is None and session_id is None:
                with suppress(SettingsError):  # an id of another form than a call's may have
                    settings = settings.replace(call_id=saved.call_id)
            if lexicon is None and saved.lexicon is not None:
                lexicon = Lexicon(saved.lexicon)
        except SettingsError as error:
            raise SnapshotError(f"the snapshot's settings cannot be taken up: {error}") from error
        session = cls(
            engine,
            voice=saved.to_voice(),
            settings=settings,
            lexicon=lexicon,
            session_id=session_id,
            clock=clock,
            rng=rng,
        )
        session.rate.s_per_unit = saved.s_per_unit
        session._count = saved.turns
        session._context.base = saved.to_state()
        await session.start()
        return session

    # For Speech

    def begin_chunk(self, entry: Entry) -> ContextState:
        """Enter a chunk that is about to be generated; the context to speak it in."""
        state = self._context.state(entry.turn)
        self._context.begin(entry)
        return state

    def request(self, speech_id: str, state: ContextState, text: str) -> SpeakRequest:
        """The engine's request for one chunk, in a context that fits the model."""
        state = self._fit(state, text)
        sampling = self.settings.sampling
        if sampling.seed is None:
            sampling = sampling.replace(seed=self._rng.randrange(2**31))
        return SpeakRequest(
            session_id=self.id,
            speech_id=speech_id,
            context=self._spec(state),
            text=text,
            sampling=sampling,
            next_context=self._next(state),
        )

    async def before_speech(self, speech: Speech) -> None:
        """Wait, but not for long, until it is known what was heard of stopped speeches; then take a pending voice."""
        if self._prompt is None:
            await self.start()
        for other in list(self._speeches.values()):
            if other is speech:
                break
            if other.stopped and not other.settled:
                await other.wait_settled(self.settings.settle_timeout_s)
                if not other.settled:
                    self.settle(other.id, other.heard_by_clock())
        self.apply_pending()

    def apply_pending(self) -> None:
        """Take over the voice of the last `update`, if one waits. Errors: `EngineClosedError` after `aclose`."""
        if self._pending is None:
            return
        self._check_open()
        self.voice, self._prompt, new = self._pending
        self._pending = None
        self._context.pin = not self.voice.references
        if new:
            self._context.clear()
        self._prepare()

    def speech_ended(self, speech: Speech) -> None:
        """The speech's generation is over."""
        if speech.settled:
            self._forget(speech)
        elif not speech.stopped:
            self._prepare()

    # Inside

    def _spec(self, state: ContextState) -> ContextSpec:
        return ContextSpec(voice=self._prompt or VoicePrompt(), exchanges=state.exchanges)

    def _next(self, state: ContextState) -> ContextSpec | None:
        """What is left of the window when the coming exchange has joined it, where joining it evicts something."""
        new = Exchange(text="", codes=_no_codes(self.engine.info.num_codebooks))
        after = append(state, new, self.settings.window, pin=False)
        kept = tuple(item for item in after.exchanges if item is not new)
        if len(kept) == len(state.exchanges):
            return None
        return self._spec(
            ContextState(pinned=state.pinned, window=tuple(item for item in after.window if item is not new))
        )

    def _fit(self, state: ContextState, text: str) -> ContextState:
        limit = self.engine.info.max_positions
        room = min(self.settings.sampling.max_new_tokens, int(len(text) * ROWS_PER_CHAR) + 100)
        if self.engine.count_rows(self._spec(state), text) + room <= limit:
            return state
        before = len(state.exchanges)
        while state.exchanges and self.engine.count_rows(self._spec(state), text) + room > limit * LIMIT_REFILL:
            state = drop_oldest(state)
        self._context.let_go(state)  # else the next chunk's context would begin elsewhere again, and be prefilled whole
        if not self._warned_limit:
            self._warned_limit = True
            log.warning(
                "the context reached the model's %d positions; %d of %d exchanges were dropped (a smaller window avoids this)",
                limit,
                before - len(state.exchanges),
                before,
            )
        return state

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("this session is closed; open another one to speak")

    def _prepare(self) -> None:
        if self._prompt is not None and not self._closed:  # else the engine would hold the context of a closed session
            self.engine.prepare(self.id, self._spec(self._context.state_at_turn()))

    def _settle_by_clock(self) -> None:
        """Speeches whose playing time has passed were heard."""
        if not self.by_clock:
            return
        for speech in list(self._speeches.values()):
            if speech.finished and not speech.stopped and speech.played_out():
                self.settle(speech.id, float("inf"))

    def _settle_overdue(self) -> None:
        entries = self._context.entries
        if sum(entry.settled for entry in entries) > MAX_BEHIND:
            first = self._speeches[entries[0].turn]
            self.settle(first.id, first.heard_by_clock())

    def _note_heard(self, speech: Speech, heard_s: float) -> None:
        seconds = min(max(heard_s, 0.0), speech.audio_s)
        speech.trace.heard(seconds)
        telemetry.event(
            log,
            "turn heard",
            call_id=self.call_id,
            speech=speech.id,
            heard_s=seconds,
            audio_s=speech.audio_s,
            interrupted=speech.stopped,
        )

    def _forget(self, speech: Speech) -> None:
        self._speeches.pop(speech.id, None)
        if self._last is speech:
            self._last = None


def _position(heard_s: float) -> float:
    """Seconds heard, as a framework gives them: not before the first sample."""
    if math.isnan(heard_s):
        raise SettingsError("how much of a speech was heard must be a number of seconds (got nan)")
    return max(heard_s, 0.0)


def _no_codes(codebooks: int) -> Codes:
    import numpy as np

    return np.zeros((codebooks, 0), dtype=np.int16)
