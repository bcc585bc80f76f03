"""From an interruption to silence, and to the next turn's first sound.

In a conversation each turn is interrupted at another place. Measured: from the interruption to the model's last step (and how
many steps came after it), to the last PCM that came out (none may), and from the next turn's text to its first PCM, with what was
heard settled in between.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from ..audio import PcmChunk
from ..conversation.session import SessionSettings, VoiceSession
from ..conversation.synthesizer import Synthesizer
from ..conversation.voice import Voice
from .common import Spread, ms, sampling_for, sentence

IDLE_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Result:
    """Seconds of each interruption."""

    idle: list[float] = field(default_factory=list[float])
    """To the engine having nothing to do for the session."""
    steps: list[int] = field(default_factory=list[int])
    """That were taken after it."""
    pcm_after: int = 0
    """Pieces of PCM that came out after it."""
    next_ttfa: list[float] = field(default_factory=list[float])
    """From the next turn's text to its first PCM."""

    def spreads(self) -> dict[str, Spread]:
        return {
            "interrupt to last step": Spread.of([ms(value) for value in self.idle]),
            "next turn's first PCM": Spread.of([ms(value) for value in self.next_ttfa]),
        }

    def as_json(self) -> dict[str, Any]:
        idle, after = self.spreads().values()
        return {
            "idle_ms_p50": idle.p50,
            "idle_ms_p95": idle.p95,
            "idle_ms_p99": idle.p99,
            "steps_after_max": max(self.steps, default=0),
            "pcm_after": self.pcm_after,
            "next_ttfa_ms_p50": after.p50,
            "next_ttfa_ms_p95": after.p95,
            "next_ttfa_ms_p99": after.p99,
        }


def _steps(engine: Synthesizer) -> int:
    return int(getattr(engine, "steps", 0))


def _active(engine: Synthesizer) -> int:
    active = getattr(engine, "active", 0)
    return active if isinstance(active, int) else len(active)


async def measure(engine: Synthesizer, *, turns: int = 30, frames: int = 50, voice: Voice | None = None) -> Result:
    """`turns` turns of three sentences; turn n is interrupted after its piece number n % 12 + 1."""
    result = Result()
    session = VoiceSession(
        engine,
        voice=voice or Voice.create(scene="Audio is recorded from a quiet room."),
        settings=SessionSettings(sampling=sampling_for(frames), run_ahead_s=600.0),
    )
    async with session:
        for turn in range(turns):
            began = time.perf_counter()
            speech = session.speak(" ".join(sentence(3 * turn + place) for place in range(3)))
            pieces = 0
            samples = 0
            interrupted = False
            async for event in speech:
                if not isinstance(event, PcmChunk):
                    continue
                if interrupted:
                    result.pcm_after += 1
                    continue
                pieces += 1
                samples += event.samples
                if pieces == 1 and turn:
                    result.next_ttfa.append(time.perf_counter() - began)
                if pieces == turn % 12 + 1:
                    interrupted = True
                    await _interrupt(engine, session, result)
            session.settle(speech.id, samples / engine.info.sample_rate / 2)
    return result


async def _interrupt(engine: Synthesizer, session: VoiceSession, result: Result) -> None:
    steps = _steps(engine)
    began = time.perf_counter()
    session.interrupt()
    while _active(engine) and time.perf_counter() - began < IDLE_TIMEOUT_S:  # noqa: ASYNC110  # nobody tells of the engine's idleness
        await asyncio.sleep(0.0005)  # a loop that never sleeps would hold the interpreter against the engine's thread
    result.idle.append(time.perf_counter() - began)
    result.steps.append(_steps(engine) - steps)
