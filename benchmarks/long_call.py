"""A long call on a real model: does anything grow that should not?

The call runs on a virtual clock: the model speaks as fast as it can, and playing and the caller's answers take no time. Every turn
is one chunk of the same number of frames; every fourth is interrupted half way. The window is the default one, `seconds`. Printed and
compared: resident memory (slope over the second half of the call), time to first audio by the wall clock (medians of the second
quarter, when the window is full, and of the last), exchanges, rows and KV bytes held, and the voice: the median pitch of the second
quarter's chunks and of the last's, in semitones. The guards do not end chunks, so that all are of one length.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from higgs_voice import ChunkerSettings, PcmChunk, SessionSettings, Voice, VoiceSession, Window
from higgs_voice.audio import SAMPLE_RATE
from higgs_voice.bench.common import Place, Spread, emit, engine_for, ms, sampling_for, sentence
from higgs_voice.conversation.presets import find_voice
from higgs_voice.conversation.synthesizer import Synthesizer

FRAME = 1440
"""Samples of a stretch whose pitch is taken: 60 ms."""


@dataclass(slots=True)
class Seen:
    """By turn."""

    ttfa_s: list[float] = field(default_factory=list[float])
    rss_mb: list[float] = field(default_factory=list[float])
    exchanges: list[int] = field(default_factory=list[int])
    rows: list[int] = field(default_factory=list[int])
    kv_mb: list[float] = field(default_factory=list[float])
    pitch: list[float] = field(default_factory=list[float])
    """Hz; NaN where nothing is voiced."""
    audio_s: float = 0.0
    busy_s: float = 0.0


class Clock:
    """Seconds of the call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pitch_of(pcm: NDArray[np.float32]) -> float:
    """Median of the voiced stretches' pitch, 60 to 400 Hz, by autocorrelation."""
    low, high = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    found: list[float] = []
    for start in range(0, len(pcm) - FRAME, FRAME // 2):
        part = pcm[start : start + FRAME]
        if np.abs(part).max() < 0.05:
            continue
        part = part - part.mean()
        alike = np.correlate(part, part, "full")[FRAME - 1 :]
        lag = low + int(np.argmax(alike[low:high]))
        if alike[lag] > 0.4 * alike[0]:
            found.append(SAMPLE_RATE / lag)
    return statistics.median(found) if len(found) >= 5 else float("nan")


async def run(
    engine: Synthesizer, voice: Voice | None, minutes: float, turn_s: float, frames: int, *, quiet: bool
) -> Seen:
    """The whole call."""
    clock, seen, process = Clock(), Seen(), psutil.Process()
    settings = SessionSettings(
        sampling=sampling_for(frames).replace(temperature=0.3, seed=None),
        window=Window.seconds(),
        chunker=ChunkerSettings(min_first_chars=200, first_max_chars=200),
        run_ahead_s=600.0,
    )
    turns = int(minutes * 60 / turn_s)
    async with VoiceSession(engine, voice=voice, settings=settings, clock=clock) as session:
        for turn in range(turns):
            began = time.perf_counter()
            first: float | None = None
            pieces: list[NDArray[np.int16]] = []
            speech = session.speak(sentence(turn))
            async for event in speech:
                if isinstance(event, PcmChunk):
                    first = time.perf_counter() - began if first is None else first
                    pieces.append(event.to_array())
            seen.busy_s += time.perf_counter() - began
            pcm = np.concatenate(pieces).astype(np.float32) / 32768.0
            length = len(pcm) / SAMPLE_RATE
            session.settle(speech.id, length / 2 if turn % 4 == 3 else length)
            clock.now += turn_s
            await asyncio.sleep(0.05)  # the caller talks: what comes next is prefilled
            seen.audio_s += length
            seen.ttfa_s.append(first or float("nan"))
            seen.pitch.append(pitch_of(pcm))
            seen.exchanges.append(session.stats.exchanges)
            seen.rows.append(session.stats.rows)
            seen.kv_mb.append(float(getattr(engine, "kv_bytes", 0)) / 1e6)
            for kept in ("requests", "prepared"):  # the engine of tones keeps all of them, for tests
                getattr(engine, kept, []).clear()
            if turn % 10 == 9:
                gc.collect()
            seen.rss_mb.append(process.memory_info().rss / 1e6)
            if turn % 30 == 29 and not quiet:
                print(
                    f"{clock.now / 60:5.0f} min: {seen.rss_mb[-1]:7.1f} MB, first sound {ms(statistics.median(seen.ttfa_s[-30:])):5.0f} ms, "
                    f"{seen.exchanges[-1]} exchanges, {seen.rows[-1]} rows, {seen.kv_mb[-1]:.1f} MB of KV",
                    flush=True,
                )
    return seen


def report(seen: Seen, minutes: float, turn_s: float) -> dict[str, Any]:
    """The figures of the last line."""
    turns = len(seen.ttfa_s)
    quarter = slice(turns // 4, turns // 2), slice(turns - turns // 4, turns)
    early, late = (statistics.median(seen.ttfa_s[part]) for part in quarter)
    half = np.asarray(seen.rss_mb[turns // 2 :])
    per_turn = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1000
    pitches = [[hz for hz in seen.pitch[part] if hz == hz] for part in quarter]
    drift = (
        12 * np.log2(statistics.median(pitches[1]) / statistics.median(pitches[0])) if all(pitches) else float("nan")
    )
    return {
        "minutes": minutes,
        "turns": turns,
        "audio_s": round(seen.audio_s, 1),
        "rtf": round(seen.busy_s / seen.audio_s, 3),
        "ttfa_ms_p50": ms(Spread.of(seen.ttfa_s).p50),
        "ttfa_ms_p95": ms(Spread.of(seen.ttfa_s).p95),
        "ttfa_ms_second_quarter": ms(early),
        "ttfa_ms_last_quarter": ms(late),
        "ttfa_ratio": round(late / early, 3),
        "rss_mb": [round(seen.rss_mb[place], 1) for place in (0, turns // 4, turns // 2, turns - 1)],
        "rss_slope_kb_per_minute": round(per_turn * 60 / turn_s, 2),
        "exchanges_max": max(seen.exchanges),
        "rows_max": max(seen.rows),
        "kv_mb_max": round(max(seen.kv_mb), 1),
        "kv_mb_last": round(seen.kv_mb[-1], 1),
        "pitch_hz": [round(statistics.median(part), 1) if part else None for part in pitches],
        "pitch_drift_semitones": round(float(drift), 2),
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    engine = engine_for(options.model)
    try:
        await engine.start()
        voice = await find_voice(options.voice, engine) if options.voice else None
        seen = await run(engine, voice, options.minutes, options.turn_s, options.frames, quiet=options.json)
    finally:
        await engine.aclose()
    return {"model": options.model, "voice": options.voice, **report(seen, options.minutes, options.turn_s)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument(
        "--voice", help="a voice's name; unless given the model's own choice, kept by the pinned exchange"
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="of the call")
    parser.add_argument("--turn-s", type=float, default=20.0, help="seconds of the call for a turn of both sides")
    parser.add_argument("--frames", type=int, default=50, help="of every chunk, 25 a second")
    parser.add_argument("--json", action="store_true", help="print nothing but the last line")
    options = parser.parse_args()
    place = Place.here()
    if not options.json:
        print("\n".join(place.lines()))
    print(emit("long_call", place, asyncio.run(measure(options))))


if __name__ == "__main__":
    main()
