"""Draw what `conversation/seams.py` does to a turn of the embedded voice, and print its figures: docs/img/joints.png.

One generation, whose chunks are then put together three times: end to end as the engine made them, with their joints
faded, and with pauses too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgs_voice import PcmChunk, Sampling, SessionSettings, VoiceSession, Window, create_backend
from higgs_voice.config import Pauses
from higgs_voice.conversation.seams import Mark, Samples, Seams, mark_after
from higgs_voice.conversation.speech import ChunkReport

TURN = "Thank you for calling, Ada. Your order has shipped; it arrives on Friday, before noon. Is there anything else?"
RATE = 24000
AROUND = 30
"""Milliseconds shown around a joint."""


async def chunks(text: str, seed: int) -> list[tuple[str, Samples]]:
    """The turn's chunks as the engine makes them: text and sound."""
    engine = create_backend("nano")
    settings = SessionSettings(
        pauses=None, crossfade=False, window=Window.last_n(1), sampling=Sampling(temperature=0.3)
    )
    texts: dict[int, str] = {}
    sound: dict[int, list[Samples]] = {}
    try:
        async with VoiceSession(engine, settings=settings, rng=random.Random(seed)) as session:
            async for item in session.speak(text):
                if isinstance(item, PcmChunk):
                    sound.setdefault(item.chunk, []).append(item.to_array())
                elif isinstance(item, ChunkReport):
                    texts[item.chunk] = item.written
    finally:
        await engine.aclose()
    return [(texts[number], np.concatenate(sound[number])) for number in sorted(sound)]


def joined(made: list[tuple[str, Samples]], pauses: Pauses | None) -> list[Samples]:
    """Each chunk's sound as the listener gets it."""
    seams = Seams(pauses=pauses)
    out: list[list[Samples]] = [[] for _ in made]
    for number, (text, sound) in enumerate(made):
        mark = mark_after(made[number - 1][0]) if number else Mark.NONE
        pieces = [*seams.begin(number, text, mark), *seams.feed(sound), *seams.end(more=True)]
        pieces += seams.close() if number + 1 == len(made) else []
        for piece in pieces:
            out[piece.chunk].append(piece.pcm)
    return [np.concatenate(item) for item in out]


def step(sound: NDArray[Any], joint: int) -> float:
    """The largest jump from a sample to the next within 5 ms of a joint, of full scale."""
    near = sound[max(0, joint - 120) : joint + 120].astype(np.float64)
    return float(np.abs(np.diff(near)).max()) / 32767


def pause_s(sound: NDArray[Any], joint: int) -> float:
    """The silence around a joint, by the level that `Seams` judges silence by, in windows of 5 ms."""
    quiet = 32767 * 10 ** (Pauses().quiet_db / 20)
    count = len(sound) // 120
    loud = np.abs(sound[: count * 120].astype(np.float64)).reshape(count, 120).mean(axis=1) > quiet
    place = joint // 120
    before = next((i for i in range(min(place, count) - 1, -1, -1) if loud[i]), -1)
    after = next((i for i in range(place, count) if loud[i]), count)
    return (after - before - 1) * 120 / RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/img/joints.png"))
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    made = asyncio.run(chunks(TURN, args.seed))
    parts: dict[str, list[Samples]] = {
        "as the engine made it": [sound for _, sound in made],
        "joints faded (pauses=None)": joined(made, None),
        "as it is heard: joints and pauses": joined(made, Pauses()),
    }

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2, figsize=(11, 7), width_ratios=(2.2, 1), sharex="col", constrained_layout=True)
    result: dict[str, Any] = {"chunks": len(made)}
    for row, (name, sounds) in enumerate(parts.items()):
        sound = np.concatenate(sounds)
        joints = [int(place) for place in np.cumsum([len(item) for item in sounds])[:-1]]
        steps = [round(step(sound, joint), 4) for joint in joints]
        pauses = [round(pause_s(sound, joint), 3) for joint in joints]
        result[("made", "joined", "heard")[row]] = {
            "steps": steps,
            "pauses_s": pauses,
            "seconds": round(len(sound) / RATE, 2),
        }
        whole, close = axes[row]
        whole.plot(np.arange(len(sound)) / RATE, sound / 32767, linewidth=0.4, color="#305080")
        for joint, silence in zip(joints, pauses, strict=True):
            whole.axvline(joint / RATE, color="#c03030", linewidth=0.8)
            whole.text(joint / RATE, 0.62, f" {silence * 1000:.0f} ms", color="#c03030", fontsize=8)
        whole.set(title=name, ylim=(-0.7, 0.7), ylabel="of full scale")
        joint, reach = joints[0], AROUND * RATE // 1000
        near = sound[joint - reach : joint + reach] / 32767
        close.plot((np.arange(len(near)) - reach) / RATE * 1000, near, linewidth=0.8, color="#305080")
        close.axvline(0, color="#c03030", linewidth=0.8)
        close.set(title=f"first joint: step {steps[0] * 100:.1f} %", ylim=(-0.05, 0.05))
    axes[2][0].set_xlabel("seconds")
    axes[2][1].set_xlabel("ms around the joint")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
