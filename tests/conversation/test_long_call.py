"""A call of two hours, in seconds: on a virtual clock and an engine whose time is counted, nothing grows."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import tracemalloc
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from higgs_voice import ChunkReport, PcmChunk, Sampling, SessionSettings, Voice, VoiceSession, Window
from higgs_voice.audio import HOP
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import Codes, ContextSpec, Exchange, SpeakRequest, SpeechEvent

CALL_S = 7200.0
SAMPLED = 20
"""Turns between two looks at what is held."""
WORDS = "the order train morning ticket answer letter is was comes late early open ready again today soon here".split()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted(FakeSynthesizer):
    """Tones, and the time that a model with a cache of the last context would take to the first of them: rows that it does
    not hold are prefilled, and every step reads all that are there."""

    PREFILL_S = 1 / 2000
    STEP_S = 0.008
    READ_S = 1e-6

    def __init__(self, clock: Clock) -> None:
        super().__init__(frames_per_char=1.4, frames_per_event=25)
        self.clock = clock
        self.held: tuple[Exchange, ...] = ()
        self.rows: list[int] = []
        self.voices: set[tuple[str | None, tuple[str, ...]]] = set()
        self.oldest: list[str] = []

    def sound_of(self, codes: Codes) -> NDArray[np.float32]:
        """Cheap, and loud enough for word times."""
        return np.full(codes.shape[1] * HOP, 0.1, dtype=np.float32)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        self.held = context.exchanges  # while the caller talks

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        context = request.context
        rows = self.count_rows(context, request.text)
        same = 0
        while same < min(len(self.held), len(context.exchanges)) and self.held[same] is context.exchanges[same]:
            same += 1
        kept = self.count_rows(ContextSpec(voice=context.voice, exchanges=context.exchanges[:same])) if self.held else 0
        self.clock.now += (rows - kept) * self.PREFILL_S + 14 * (self.STEP_S + rows * self.READ_S)
        self.held = context.exchanges
        self.rows.append(rows)
        self.voices.add((context.voice.scene, context.voice.speakers))
        self.oldest.append(context.exchanges[0].text if context.exchanges else "")
        async for event in super().speak(request):
            yield event
        self.requests.clear()  # FakeSynthesizer keeps them all, for tests


@dataclass(slots=True)
class Call:
    """What was seen of it, by turn."""

    ttfa_s: list[float] = field(default_factory=list[float])
    exchanges: list[int] = field(default_factory=list[int])
    context_s: list[float] = field(default_factory=list[float])
    speeches: list[int] = field(default_factory=list[int])
    snapshot: list[int] = field(default_factory=list[int])
    memory: list[int] = field(default_factory=list[int])
    """Bytes."""
    objects: list[int] = field(default_factory=list[int])

    def quarters(self, values: list[float] | list[int]) -> tuple[float, float]:
        """Medians of the second quarter (the window is full by then) and the last."""
        quarter = len(values) // 4
        return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


async def call_of(window: Window, *, call_s: float = CALL_S, trace: bool = False) -> tuple[Call, Counted]:
    clock, rng, seen = Clock(), random.Random(7), Call()
    engine = Counted(clock)
    session = VoiceSession(
        engine,
        voice=Voice.create(scene="Customer support call.", speakers="warm"),
        settings=SessionSettings(sampling=Sampling(temperature=0.0), window=window),
        clock=clock,
        rng=rng,
    )
    async with session:
        turn = 0
        while clock.now < call_s:
            text = " ".join(f"{' '.join(rng.choices(WORDS, k=rng.randint(4, 9))).capitalize()}." for _ in range(3))
            speech = session.speak(text)
            length = 0.0
            cut = rng.uniform(0.5, 6.0) if turn % 4 == 3 else float("inf")
            first: float | None = None
            async for event in speech:
                if isinstance(event, PcmChunk):
                    length += event.duration_s
                    if length > cut:
                        break
                elif isinstance(event, ChunkReport) and first is None:
                    first = event.ttfa_s
            clock.now += length
            if turn % 4 == 3:
                session.settle(speech.id, length * rng.random())
            elif turn % 4:  # every fourth is settled by the clock
                session.settle(speech.id, length)
            clock.now += rng.uniform(3.0, 9.0)  # the caller
            turn += 1
            if first is not None:
                seen.ttfa_s.append(first)
            seen.exchanges.append(session.stats.exchanges)
            seen.context_s.append(session.stats.context_s)
            seen.speeches.append(len(session._speeches))
            if turn % SAMPLED == 0:
                seen.snapshot.append(len(session.snapshot()))
                gc.collect()
                seen.objects.append(len(gc.get_objects()))
            if trace and turn % 2:
                gc.collect()
                seen.memory.append(tracemalloc.get_traced_memory()[0])
        assert turn > 300 * call_s / CALL_S
    return seen, engine


def test_two_hours_are_like_two_minutes() -> None:
    seen, engine = asyncio.run(call_of(Window.seconds(20.0, 40.0)))
    # time to first audio
    early, late = seen.quarters(seen.ttfa_s)
    assert late == pytest.approx(early, rel=0.05)
    assert max(seen.ttfa_s[20:]) < 2 * early
    # the context
    turn_s = 30.0
    assert max(seen.context_s) <= 40.0 + turn_s
    early, late = seen.quarters(seen.exchanges)
    assert late == pytest.approx(early, abs=2)
    assert max(engine.rows) < 3000
    assert max(seen.speeches) <= 2
    assert max(seen.snapshot) < 80_000
    # the voice: one description, and the first thing said leads every context
    assert engine.voices == {("Customer support call.", ("SPEAKER0: warm",))}
    assert len(set(engine.oldest[1:])) == 1
    # memory: a turn that left one object behind would leave hundreds
    assert slope(seen.objects) < 0.5


async def test_memory_does_not_grow() -> None:
    tracemalloc.start()
    try:
        seen, _ = await call_of(Window.seconds(20.0, 40.0), call_s=CALL_S / 8, trace=True)
    finally:
        tracemalloc.stop()
    quarter = len(seen.memory) // 4  # the least of many turns: what one speech holds while it plays varies
    before, after = min(seen.memory[quarter : 2 * quarter]), min(seen.memory[-quarter:])
    assert after - before < 20_000  # the exchanges of the turns between them have 100,000


def slope(values: list[int]) -> float:
    """Growth a turn, over the second half."""
    half = np.asarray(values[len(values) // 2 :], dtype=np.float64)
    return float(np.polyfit(np.arange(len(half)) * SAMPLED, half, 1)[0])


async def test_without_a_pinned_exchange_the_voice_has_no_anchor() -> None:
    _, engine = await call_of(Window.seconds(20.0, 40.0, pin_first=False), call_s=CALL_S / 4)
    assert len(set(engine.oldest)) > 10


async def test_a_context_without_bounds_is_bounded_by_the_model_and_slides_seldom() -> None:
    seen, engine = await call_of(Window.last_n(None), call_s=CALL_S / 2)
    assert max(engine.rows) <= engine.info.max_positions
    assert max(engine.rows) > 0.9 * engine.info.max_positions
    slides = sum(after < before for before, after in itertools.pairwise(engine.rows))
    assert 0 < slides < len(engine.rows) / 10
    assert statistics.median(seen.ttfa_s[-50:]) < 0.4  # most chunks prefill their own text only
    assert max(seen.exchanges[-50:]) < 2 * max(seen.exchanges[: len(seen.exchanges) // 4])
