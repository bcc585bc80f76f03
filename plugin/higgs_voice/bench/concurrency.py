"""How many sessions one engine serves without a gap.

Every session keeps an agent's rhythm: it speaks three sentences (six seconds), pauses for four, and is interrupted in one turn
of five. A listener plays what comes from the first PCM on; an underrun is PCM that comes after the sound before it has been
played. The capacity is the largest number of sessions without an underrun.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..audio import PcmChunk
from ..conversation.session import SessionSettings, VoiceSession
from ..conversation.synthesizer import Synthesizer
from ..conversation.voice import Voice
from ..errors import EngineBusyError
from .common import Spread, ms, sampling_for, sentence

CHUNKS = 3
TOLERANCE_S = 0.005
"""How late PCM may be: what an operating system's timers and a transport's buffer make up for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The rhythm."""

    seconds: float = 30.0
    """Measured for each number of sessions."""
    frames: int = 50
    """Of each of the three chunks of a turn."""
    pause_s: float = 4.0
    barge_in: float = 0.2
    """Share of turns that are interrupted."""
    seed: int = 1


@dataclass(slots=True)
class Level:
    """What was found with one number of sessions."""

    sessions: int
    ttfa: list[float] = field(default_factory=list[float])
    underruns: int = 0
    longest_gap_s: float = 0.0
    audio_s: float = 0.0
    busy: int = 0
    """Sessions or turns that the engine refused."""
    wall_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        spread = Spread.of([ms(value) for value in self.ttfa])
        return {
            "sessions": self.sessions,
            "ttfa_ms_p50": spread.p50,
            "ttfa_ms_p95": spread.p95,
            "ttfa_ms_p99": spread.p99,
            "underruns": self.underruns,
            "longest_gap_ms": ms(self.longest_gap_s),
            "audio_s_per_s": self.audio_s / self.wall_s if self.wall_s else 0.0,
            "turns": len(self.ttfa),
            "busy": self.busy,
        }


async def measure(
    engine: Synthesizer,
    sessions: Sequence[int],
    settings: Settings,
    *,
    voice: Voice | None = None,
    on_level: Callable[[Level], None] = lambda level: None,
    every: bool = False,
) -> list[Level]:
    """One level after another, up to the first with underruns or refusals; with ``every``, all of them."""
    levels: list[Level] = []
    for count in sessions:
        level = Level(count)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(_agent(engine, level, settings, number, began + settings.seconds, voice))
        level.wall_s = time.perf_counter() - began
        levels.append(level)
        on_level(level)
        if not every and (level.underruns or level.busy):
            break
    return levels


def capacity(levels: Sequence[Level]) -> int:
    """The largest number of sessions without an underrun or a refusal; 0 if there is none."""
    return max((level.sessions for level in levels if not level.underruns and not level.busy), default=0)


def as_json(levels: Sequence[Level]) -> dict[str, Any]:
    return {
        "capacity": capacity(levels),
        "ttfa_ms_p95": {str(level.sessions): level.as_json()["ttfa_ms_p95"] for level in levels},
        "levels": [level.as_json() for level in levels],
    }


async def _agent(
    engine: Synthesizer, level: Level, settings: Settings, number: int, until: float, voice: Voice | None
) -> None:
    rng = random.Random(settings.seed * 1000 + number)
    session = VoiceSession(
        engine,
        voice=voice or Voice.create(scene="Audio is recorded from a quiet room."),
        settings=SessionSettings(sampling=sampling_for(settings.frames, seed=number)),
        rng=rng,
    )
    try:
        async with session:
            # Callers do not begin all at once.
            await asyncio.sleep(rng.random() * min(settings.pause_s, settings.seconds / 4))
            turn = 0
            while time.perf_counter() < until:
                cut = rng.uniform(0.5, 4.0) if rng.random() < settings.barge_in else None
                await _turn(session, level, number + CHUNKS * turn, cut)
                turn += 1
                await asyncio.sleep(settings.pause_s)
    except EngineBusyError:
        level.busy += 1


async def _turn(session: VoiceSession, level: Level, first: int, cut_s: float | None) -> None:
    """One turn, played as it comes; with `cut_s` the listener interrupts when that much was played."""
    began = time.perf_counter()
    text = " ".join(sentence(first + place) for place in range(CHUNKS))
    speech = session.speak(text)
    playing = 0.0  # when playing began
    received = 0.0  # seconds of sound
    async for event in speech:
        if not isinstance(event, PcmChunk):
            continue
        now = time.perf_counter()
        if not playing:
            playing = now
            level.ttfa.append(now - began)
        gap = now - (playing + received)
        if received and gap > TOLERANCE_S:
            level.underruns += 1
            level.longest_gap_s = max(level.longest_gap_s, gap)
            playing += gap
        received += event.duration_s
        level.audio_s += event.duration_s
        if cut_s is not None and received >= cut_s:
            break
    left = playing + min(received, cut_s if cut_s is not None else received) - time.perf_counter()
    if playing and left > 0:
        await asyncio.sleep(left)
    heard = min(time.perf_counter() - playing, received) if playing else 0.0
    session.settle(speech.id, heard if cut_s is not None else float("inf"))
