"""A turn that begins while other sessions are in the middle of theirs, with and without their letting it go ahead.

Every round, `--others` sessions begin a turn of 12 s and, two seconds later, one more session begins one of 4 s: the time to its
first PCM, the least that its listener had left in the first two seconds of sound (below nought it is a gap), and how many of the others had
a gap. The engine takes turns between `ahead` (who has ample sound waits for who has little, in the model and in the codec) and `alike` (all
step, and equal pieces are decoded, together).

    python benchmarks/beside.py [--others 3] [--rounds 12] [--model nano] [--device auto] [--frames 100]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict, replace
from typing import Any

from common import Place, Spread, emit, engine_for, ms

from higgs_voice import PcmChunk, SessionSettings, VoiceSession
from higgs_voice.backends.decoding import AMPLE_S, COMFORTABLE_S
from higgs_voice.bench.common import HostShare, sampling_for, sentence
from higgs_voice.config import engine_kind

BEFORE_S, WATCHED_S = 2.0, 2.0


async def turn(session: VoiceSession, text: str, watched_s: float = float("inf")) -> tuple[float, float]:
    """Seconds to the first PCM, and the least that was left to play of the sound that was watched, when more came."""
    began, first, received, least = time.perf_counter(), 0.0, 0.0, float("inf")
    speech = session.speak(text)
    async for event in speech:
        if not isinstance(event, PcmChunk):
            continue
        now = time.perf_counter()
        if not first:
            first = now
        elif received < watched_s:  # that it comes late counts, however late
            least = min(least, first + received - now)
        received += event.duration_s
    session.settle(speech.id, float("inf"))
    return first - began, least


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    engine: Any = engine_for(options.model, device=options.device)
    await engine.start()
    kinds = {
        "ahead": replace(engine._scheduler, comfortable_s=COMFORTABLE_S, ample_s=AMPLE_S),
        "alike": replace(engine._scheduler, ample_s=None),
    }
    sessions = [
        VoiceSession(engine, settings=SessionSettings(sampling=sampling_for(options.frames, seed=number)))
        for number in range(options.others + 1)
    ]
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    late = dict.fromkeys(kinds, 0)
    try:
        for number in range(options.rounds):
            for kind in list(kinds)[:: 1 if number % 2 else -1]:
                others: list[asyncio.Task[tuple[float, float]]] = []
                engine._worker._scheduler = kinds[kind]
                engine._sound._together = kind == "alike"
                async with asyncio.TaskGroup() as group:
                    for place, session in enumerate(sessions[1:]):
                        text = " ".join(sentence(number * 5 + place * 7 + chunk) for chunk in range(3))
                        others.append(group.create_task(turn(session, text)))
                    await asyncio.sleep(BEFORE_S)
                    found[kind].append(await turn(sessions[0], sentence(number), WATCHED_S))
                late[kind] += sum(task.result()[1] < 0 for task in others)
    finally:
        for session in sessions:
            await session.aclose()
        await engine.aclose()
    return {
        kind: {
            "ttfa_ms": asdict(Spread.of([ms(first) for first, _ in each])),
            "least_left_ms": asdict(Spread.of([ms(least) for _, least in each])),
            "gaps": sum(least < 0 for _, least in each),
            "others_with_gaps": late[kind],
        }
        for kind, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=100)
    options = parser.parse_args()
    if min(options.others, options.rounds, options.frames) < 1:
        parser.error("--others, --rounds and --frames are one or more")
    if engine_kind(options.model) != "local":
        parser.error(
            f"--model is one that runs in this process, and {options.model} is not: its schedule cannot be changed"
        )
    place, host = Place.here(), HostShare()
    print("\n".join(place.lines()))
    found = asyncio.run(measure(options))
    for kind, each in found.items():
        ttfa, left = each["ttfa_ms"]["p50"], each["least_left_ms"]["p50"]
        print(
            f"{kind}: first PCM after {ttfa:.0f} ms, least left {left:.0f} ms, {each['gaps']} with a gap, "
            f"{each['others_with_gaps']} of the others"
        )
    print(emit("beside", place, {"others": options.others, **found, "host_took_percent": host.percent}))


if __name__ == "__main__":
    main()
