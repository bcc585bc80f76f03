"""What many calls do to the host beside a GPU, on a machine that needs none.

Sessions, scheduler, worker, pages of keys and values, codec streams and events are the real ones, set as for a GPU. Only the arithmetic is
left out: a step, a prefill's piece (of one context, or of several that are packed) and a batch of the codec's pieces are waited for instead, as
long as they are said to take, and give random codes and noise. So the times say nothing of a GPU; what is measured is whether scheduling and Python keep up with so many calls
on such a device, and what they cost. Each waits for the one before, where a GPU's worker goes on launching.

The rhythm, underruns and TTFA are those of `higgs-voice bench concurrency`; a level is measured whatever the one before had.

    python benchmarks/load.py [--sessions 16,64,100] [--step-ms 4] [--prefill-ms 5] [--codec-ms 2] [--seconds 30]
                              [--frames 50] [--pause 4] [--batch 64] [--packed 300] [--packed-ms 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import Place, emit
from numpy.typing import NDArray
from torch import Tensor

from higgs_voice.backends.local import GPU_BATCH, Guards, LocalSynthesizer
from higgs_voice.bench import concurrency
from higgs_voice.codec import Decoder
from higgs_voice.codec.layers import Span
from higgs_voice.heap import settled
from higgs_voice.model.kv import KvSlot
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import GPU_PIECE, Runner
from higgs_voice.model.sampling import Lines
from higgs_voice.model.scheduler import Scheduler

ROWS = 400_000
"""Of contexts, for 150 calls: 43 GiB at the published model's size, 5 at this one's."""
PACKED = 300
"""Rows that are packed. A chunk's own rows are some 104 here, where a token is a letter or two, and an estimated 45 of the published model's: so
many chunks fit as fit there into 128 rows."""


def without_arithmetic(step_s: float, prefill_s: float, codec_s: float, packed_s: float, packed: int) -> Any:
    """Patches under which engines wait where they would compute."""
    rng = np.random.default_rng(0)

    def step(self: Runner, lines: Lines, decode: Any) -> Tensor:
        time.sleep(step_s)
        return torch.from_numpy(rng.integers(0, self.bos, size=(len(lines.index), self.num_codebooks)))

    def prefill(self: Runner, slot: KvSlot, rows: Rows) -> Tensor:
        time.sleep(prefill_s)
        slot.append(rows)
        return torch.empty(0)

    def prefill_packed(self: Runner, slots: Sequence[KvSlot], rows: Sequence[Rows]) -> Tensor:
        time.sleep(packed_s)
        for slot, part in zip(slots, rows, strict=True):
            slot.append(part)
        return torch.empty(0)

    def run(self: Decoder, windows: list[NDArray[np.int64]], samples: Span) -> NDArray[np.float32]:
        time.sleep(codec_s)
        return rng.standard_normal((len(windows), samples.end - samples.begin), dtype=np.float32) * 0.1

    return (
        patch.object(Runner, "_step", step),
        patch.object(Runner, "_prefill", prefill),
        patch.object(Runner, "_prefill_packed", prefill_packed),
        patch.object(Runner, "packed", packed),
        patch.object(Decoder, "_run", run),
    )


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    guards = Guards(base_s=600.0, silence_s=600.0, min_frames=1, retries=0)
    engine: Any = LocalSynthesizer("nano", device="cpu", threads=1, guards=guards, paged=True, max_rows=options.rows)
    found: list[dict[str, Any]] = []
    await engine.start()
    try:
        engine._worker._scheduler = replace(Scheduler(), max_batch=options.batch)
        engine._worker._runner.piece = GPU_PIECE
        engine._sound._together = True
        with settled():
            for count in options.sessions:
                steps, used = engine.steps, _cpu_s()
                settings = concurrency.Settings(seconds=options.seconds, frames=options.frames, pause_s=options.pause)
                (level,) = await concurrency.measure(engine, [count], settings)
                cost = (_cpu_s() - used) / max(level.audio_s, 1e-9)
                each = level.as_json() | {
                    "host_cpu_s_per_audio_s": cost,
                    "steps_per_s": (engine.steps - steps) / level.wall_s,
                }
                found.append(each)
                print(
                    f"{count:4} sessions  first PCM p50 {each['ttfa_ms_p50']:.0f} p95 {each['ttfa_ms_p95']:.0f} ms  "
                    f"underruns {each['underruns']} ({each['longest_gap_ms']:.0f} ms)  refused {each['busy']}  "
                    f"{each['audio_s_per_s']:.1f} s of sound a second  host {cost * 1e3:.1f} ms a second of sound",
                    flush=True,
                )
    finally:
        await engine.aclose()
    return found


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=numbers, default=[16, 64, 100])
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--prefill-ms", type=float, default=5.0, help="of a piece")
    parser.add_argument("--packed", type=int, default=PACKED, help="rows of several contexts at once; 0: one by one")
    parser.add_argument("--packed-ms", type=float, help="of a piece of so many rows or fewer; else as other pieces")
    parser.add_argument("--codec-ms", type=float, default=2.0, help="of a batch of pieces")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each number of sessions")
    parser.add_argument("--frames", type=int, default=50, help="of each of the three chunks of a turn")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between turns")
    parser.add_argument("--batch", type=int, default=GPU_BATCH)
    parser.add_argument("--rows", type=int, default=ROWS, help="of contexts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = Place.here()
    print("\n".join(place.lines()))
    waits = {"step_ms": options.step_ms, "prefill_ms": options.prefill_ms, "codec_ms": options.codec_ms}
    waits["packed_ms"] = options.prefill_ms if options.packed_ms is None else options.packed_ms
    print(f"no arithmetic: {waits} are waited for instead; at most {options.packed} rows are packed")
    with contextlib.ExitStack() as stack:
        for each in without_arithmetic(*(value / 1e3 for value in waits.values()), packed=options.packed):
            stack.enter_context(each)
        levels = asyncio.run(measure(options))
    result = {"waits": waits, "batch": options.batch, "packed_rows": options.packed, "levels": levels}
    print(emit("load", place, result))


if __name__ == "__main__":
    main()
