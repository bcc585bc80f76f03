"""Time to first audio over a long conversation: a rolling context whose state is kept, and one that is prefilled again.

A conversation of many turns, three chunks each, no idle between the chunks of a turn, all of it heard. Every chunk has the
same number of frames. Of each chunk the time from the request to the first PCM is taken. After each of the last turns its requests
are made again as the documented algorithm makes them: in a session that holds nothing, behind a voice that no session has
used, so that all rows of the prompt are prefilled; first frames and codec are the same.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import Window
from ..conversation.passing import Passing
from ..conversation.session import SessionSettings, VoiceSession
from ..conversation.speech import ChunkReport
from ..conversation.synthesizer import (
    AudioEvent,
    FinishedEvent,
    SpeakRequest,
    SpeechEvent,
    Synthesizer,
)
from ..conversation.voice import Voice
from ..text import ChunkerSettings
from .common import Spread, ms, sampling_for, sentence

WINDOWS: dict[str, Window] = {
    "last_n": Window.last_n(5),
    "seconds": Window.seconds(),
    "all": Window.last_n(None),
}
CHUNKS = 3
"""Chunks of a turn."""
EDGE = 5
"""Turns at either end whose medians are compared; the first turn, which finds nothing warm, is left out."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One conversation."""

    turns: int = 50
    frames: int = 50
    """Frames of each chunk: two seconds."""
    pause_s: float = 1.0
    """What the caller says between turns."""
    again: int = 5
    """Turns, the last ones, whose chunks are made again by the documented algorithm."""
    again_s: float = 30.0
    """Time to spend on that; a context without bounds takes long to prefill."""


@dataclass(slots=True)
class Result:
    """What was found with one window."""

    window: str
    ttfa_s: list[list[float]] = field(default_factory=list[list[float]])
    """Of each turn's chunks."""
    prefilled: list[list[float]] = field(default_factory=list[list[float]])
    """Rows that each chunk prefilled."""
    audio_s: float = 0.0
    busy_s: float = 0.0
    """Time to generate it."""
    documented_s: list[float] = field(default_factory=list[float])
    """Time to first audio of the chunks that were made again."""
    ours_s: list[float] = field(default_factory=list[float])
    """The same chunks' in the conversation."""
    rebuild_s: list[float] = field(default_factory=list[float])
    """Time that the whole prompt's prefill took."""
    rows: int = 0
    """Rows of the last prompt."""
    exchanges: int = 0
    """In the last chunk's context."""

    @property
    def turns_ms(self) -> list[float]:
        """The median of each turn."""
        return [ms(statistics.median(turn)) for turn in self.ttfa_s]

    @property
    def ratio_last_first(self) -> float:
        first = [value for turn in self.ttfa_s[1 : 1 + EDGE] for value in turn]
        last = [value for turn in self.ttfa_s[1:][-EDGE:] for value in turn]
        return statistics.median(last) / statistics.median(first) if first else float("nan")

    @property
    def ratio_documented(self) -> float:
        if not self.documented_s:
            return float("nan")
        return statistics.median(self.ours_s) / statistics.median(self.documented_s)

    @property
    def rtf(self) -> float:
        return self.busy_s / self.audio_s if self.audio_s else float("nan")

    def spread(self) -> Spread:
        return Spread.of([ms(value) for turn in self.ttfa_s for value in turn])

    def as_json(self) -> dict[str, Any]:
        return {
            "ttfa_ms": self.turns_ms,
            "ttfa_ms_p50": self.spread().p50,
            "ttfa_ms_p95": self.spread().p95,
            "ttfa_ms_p99": self.spread().p99,
            "ratio_last_first": self.ratio_last_first,
            "ratio_documented": self.ratio_documented,
            "documented_ttfa_ms": ms(statistics.median(self.documented_s)) if self.documented_s else None,
            "rebuild_ms": ms(statistics.median(self.rebuild_s)) if self.rebuild_s else None,
            "prefilled_rows": statistics.median([v for turn in self.prefilled for v in turn] or [0.0]),
            "prompt_rows": self.rows,
            "exchanges": self.exchanges,
            "rtf": self.rtf,
            "audio_s": self.audio_s,
        }


class Recorder(Passing):
    """An engine that passes everything on and keeps the last requests."""

    def __init__(self, engine: Synthesizer, keep: int) -> None:
        super().__init__(engine)
        self._keep = keep
        self.requests: list[SpeakRequest] = []

    def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        self.requests = [*self.requests, request][-self._keep :]
        return super().speak(request)


async def measure(
    engine: Synthesizer,
    name: str,
    settings: Settings,
    *,
    voice: Voice | None = None,
    on_turn: Callable[[Result], None] = lambda result: None,
) -> Result:
    """One conversation with the window `name` of `WINDOWS`. `on_turn` sees what was found so far after every turn."""
    result = Result(name)
    recorder = Recorder(engine, CHUNKS)
    session = VoiceSession(
        recorder,
        voice=voice
        or Voice.create(scene="Audio is recorded from a quiet room.", speakers="warm; clear; moderate pitch"),
        settings=SessionSettings(
            sampling=sampling_for(settings.frames),
            window=WINDOWS[name],
            # A chunk is a sentence, also the first one of a turn.
            chunker=ChunkerSettings(min_first_chars=200, first_max_chars=200),
            run_ahead_s=600.0,
        ),
    )
    async with session:
        for turn in range(settings.turns):
            text = " ".join(sentence(CHUNKS * turn + chunk) for chunk in range(CHUNKS))
            speech = session.speak(text)
            reports = [event async for event in speech if isinstance(event, ChunkReport)]
            result.ttfa_s.append([report.ttfa_s for report in reports])
            result.prefilled.append([report.timings.get("prefilled", 0.0) for report in reports])
            result.audio_s += sum(report.audio_s for report in reports)
            result.busy_s += sum(report.total_s for report in reports)
            result.exchanges = reports[-1].exchanges
            if turn >= settings.turns - settings.again and sum(result.documented_s) < settings.again_s:
                await _again(engine, recorder.requests, result, 100 * turn)
            session.settle(speech.id, float("inf"))
            on_turn(result)
            await asyncio.sleep(settings.pause_s)
    return result


async def _again(engine: Synthesizer, requests: Sequence[SpeakRequest], result: Result, number: int) -> None:
    """The requests of the turn that has just been spoken, from nothing."""
    result.ours_s += result.ttfa_s[-1]
    for place, request in enumerate(requests[-len(result.ttfa_s[-1]) :]):
        first, rebuild = await _from_nothing(engine, request, number + place)
        result.documented_s.append(first)
        result.rebuild_s.append(rebuild)
        result.rows = engine.count_rows(request.context, request.text)


async def _from_nothing(engine: Synthesizer, request: SpeakRequest, number: int) -> tuple[float, float]:
    """Seconds to the first PCM, and of the prefill, when the engine holds nothing of the context."""
    session = f"{request.session_id} again {number}"
    # Another voice for each, of the same length: engines keep the state of a voice for other sessions.
    scene = f"{request.context.voice.scene} Take {number:05d}."
    context = replace(request.context, voice=replace(request.context.voice, scene=scene))
    again = replace(request, session_id=session, speech_id=session, context=context, next_context=None)
    began = time.perf_counter()
    first = float("nan")
    prefill = float("nan")
    async with aclosing(engine.speak(again)) as events:
        async for event in events:
            if isinstance(event, AudioEvent) and event.pcm and first != first:
                first = time.perf_counter() - began
                engine.stop(session)
            elif isinstance(event, FinishedEvent):
                prefill = event.timings.get("prefill", float("nan"))
    engine.close_session(session)
    return first, prefill
