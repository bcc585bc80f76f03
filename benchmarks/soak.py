"""Memory over a long call: turns that are all interrupted, and what the process holds after each.

Every turn is three sentences, barged into after its piece number n % 12 + 1; what was heard is settled at half of it. Printed:
resident memory every 20 turns, and its slope over the second half, in KB a turn. The window is a short one (5 to 10 s), so that the
context has stopped growing long before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc

import numpy as np
import psutil

from higgs_voice import PcmChunk, SessionSettings, VoiceSession, Window
from higgs_voice.bench.common import Place, emit, engine_for, sampling_for, sentence


async def run(model: str, turns: int) -> list[float]:
    """Resident memory in MB after each turn."""
    engine = engine_for(model)
    await engine.start()
    process = psutil.Process()
    held: list[float] = []
    async with VoiceSession(
        engine, settings=SessionSettings(sampling=sampling_for(40), window=Window.seconds(5, 10))
    ) as session:
        for turn in range(turns):
            speech = session.speak(" ".join(sentence(3 * turn + place) for place in range(3)))
            pieces = samples = 0
            async for event in speech:
                if isinstance(event, PcmChunk):
                    pieces += 1
                    samples += event.samples
                    if pieces > turn % 12:
                        break
            session.settle(speech.id, samples / engine.info.sample_rate / 2)
            gc.collect()
            held.append(process.memory_info().rss / 1e6)
            if turn % 20 == 19:
                print(
                    f"turn {turn + 1:4}: {held[-1]:8.1f} MB, {session.stats.exchanges} exchanges in context", flush=True
                )
    await engine.aclose()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args()
    place = Place.here()
    print("\n".join(place.lines()))
    held = asyncio.run(run(options.model, options.turns))
    steady = np.asarray(held[len(held) // 2 :])
    slope = float(np.polyfit(np.arange(len(steady)), steady, 1)[0]) * 1000
    print(
        emit(
            "soak", place, {"turns": len(held), "rss_mb": round(held[-1], 1), "rss_slope_kb_per_turn": round(slope, 2)}
        )
    )


if __name__ == "__main__":
    main()
