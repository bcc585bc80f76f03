"""Text in to first PCM out at the client, in a conversation, and where the time goes.

An LLM's tokens are fed all at once, so that only our own time counts. A turn's time is taken from its last token to the first
PCM that the consumer of the speech holds, and is split: chunking (feeding, until the chunk is asked for), the engine's queue,
prefill, steps with the first piece of the codec, and transport (from the engine's first sound to the client's). What the codec
takes for as much sound as its first piece has is measured by itself.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from ..audio import PcmChunk
from ..config import Window
from ..conversation.session import SessionSettings, VoiceSession
from ..conversation.speech import ChunkReport
from ..conversation.synthesizer import Synthesizer
from ..conversation.voice import Voice
from .common import Spread, ms, sampling_for, sentence

FIRST_FRAMES = 2
"""Frames of sound in the codec's first piece."""


@dataclass(slots=True)
class Result:
    """Seconds of each turn."""

    total: list[float] = field(default_factory=list[float])
    chunking: list[float] = field(default_factory=list[float])
    queue: list[float] = field(default_factory=list[float])
    prefill: list[float] = field(default_factory=list[float])
    steps: list[float] = field(default_factory=list[float])
    codec: list[float] = field(default_factory=list[float])
    transport: list[float] = field(default_factory=list[float])
    rtf: list[float] = field(default_factory=list[float])

    def spreads(self) -> dict[str, Spread]:
        names = ("total", "chunking", "queue", "prefill", "steps", "codec", "transport")
        return {name: Spread.of([ms(value) for value in getattr(self, name)]) for name in names}

    def as_json(self) -> dict[str, Any]:
        total = self.spreads()["total"]
        return {
            "ttfa_ms": [ms(value) for value in self.total],
            "ttfa_ms_p50": total.p50,
            "ttfa_ms_p95": total.p95,
            "ttfa_ms_p99": total.p99,
            "split_ms_p50": {name: spread.p50 for name, spread in self.spreads().items() if name != "total"},
            "rtf": statistics.median(self.rtf) if self.rtf else None,
        }


async def measure(
    engine: Synthesizer, *, turns: int = 30, frames: int = 50, pause_s: float = 0.5, voice: Voice | None = None
) -> Result:
    """`turns` turns of one sentence each, all heard, with `pause_s` between them; the first one is not counted."""
    result = Result()
    session = VoiceSession(
        engine,
        voice=voice
        or Voice.create(scene="Audio is recorded from a quiet room.", speakers="warm; clear; moderate pitch"),
        settings=SessionSettings(sampling=sampling_for(frames), window=Window.seconds(), run_ahead_s=600.0),
    )
    async with session:
        for turn in range(turns + 1):
            speech = session.speak()
            text = sentence(turn)
            # Without a comma the sentence is one chunk.
            tokens = text.replace(",", "").split(" ")
            for token in tokens[:-1]:
                speech.feed(token + " ")
            began = time.perf_counter()
            speech.feed(tokens[-1])
            speech.end()
            first: float | None = None
            report: ChunkReport | None = None
            async for event in speech:
                if isinstance(event, PcmChunk) and first is None:
                    first = time.perf_counter() - began
                elif isinstance(event, ChunkReport):
                    report = report or event
            session.settle(speech.id, float("inf"))
            if turn and first is not None and report is not None:
                _split(result, first, report)
            codes = session.exchanges[-1].codes[:, :FIRST_FRAMES]
            began = time.perf_counter()
            await engine.decode(codes)
            if turn:
                result.codec.append(time.perf_counter() - began)
            await asyncio.sleep(pause_s)
    return result


def _split(result: Result, first: float, report: ChunkReport) -> None:
    queue, prefill = report.timings.get("queue", 0.0), report.timings.get("prefill", 0.0)
    engine = report.timings.get("ttfa", report.ttfa_s)
    result.total.append(first)
    result.chunking.append(max(0.0, first - report.ttfa_s))
    result.queue.append(queue)
    result.prefill.append(prefill)
    result.steps.append(max(0.0, engine - queue - prefill))
    result.transport.append(max(0.0, report.ttfa_s - engine))
    result.rtf.append(report.rtf)
