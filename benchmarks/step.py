"""What a step costs: milliseconds for one row of every stream in a batch, by batch size and by rows of context.

Contexts are random codes behind a short prompt, so nothing ends by itself. A step is everything that one row takes: embedding,
layers, heads, sampling, and the row's way to the host. Two ways of stepping are timed: `alone` waits for every row before it
launches the next step; `ahead`, on a GPU, reads rows one step late. Beside them stands the floor: the bytes that a step must
read (the audio path's weights once, the keys and values of every context) over the copy bandwidth of this machine,
measured first. Then prefill, in pieces as the engine takes them.

    python benchmarks/step.py [--model nano] [--random 3b] [--layers N] [--device auto] [--dtype auto] [--weight-dtype auto]
                              [--threads N] [--batches 1,2,4] [--contexts 64,256,1024] [--steps 60] [--eager] [--check] [--profile]
                              [--partial] [--out FILE]

``--random 3b`` has the published model's shapes and random weights: its times are true and its sound is noise. ``--check``, on
a GPU, first compares captured steps with those that are not captured, and other kernels' with plain ones: rows drawn, in the type that is
timed and in float32, and logits. On a GPU, for a model in bfloat16, all kinds of kernels are timed, in turns: `plain` is
cuBLAS and torch's own with attention over pages, `drawn` has embedding and sampling in three launches, `fused` norms, gate and residuals
within the products too, and in `overlapped` each begins while the one before ends. ``--profile``: where a GPU's time goes in a step
for one stream, kernel by kernel. ``--partial`` prints a JSON line of what was found so far after every row of the table, with ``partial: true``.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Place, Spread, emit

from higgs_voice.config import Sampling
from higgs_voice.model.loading import Loaded, load, random_model
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import Generation, Kernels, Runner, kinds_for, kinds_on

SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=1_000_000)


def context(runner: Runner, rows: int, seed: int) -> Rows:
    """A prompt of exactly so many rows, nearly all of them audio."""
    head = runner.prompts.opening("Say this.")
    count = max(rows - len(head), 1)
    codes = np.random.default_rng(seed).integers(0, runner.bos, size=(count, runner.num_codebooks)).astype(np.int16)
    return Rows.concat([head, Rows.of_audio(codes, runner.audio_token)])[:rows]


def begin(runner: Runner, batch: int, rows: int) -> list[Generation]:
    generations: list[Generation] = []
    for seed in range(batch):
        slot = runner.pool.acquire()
        runner.align(slot, context(runner, rows, seed))
        generations.append(runner.start(slot, SAMPLING, seed))
    return generations


def end(generations: list[Generation]) -> None:
    for generation in generations:
        generation.slot.release()


def stepped(runner: Runner, generations: list[Generation], steps: int, *, ahead: bool) -> tuple[Spread, Spread]:
    """Milliseconds a step, by the wall clock and of this process' CPU time."""
    for _ in range(4):
        runner.step(generations)
    times: list[float] = []
    work: list[float] = []
    pending = runner.launch(generations) if ahead else None
    last, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        if pending is None:
            runner.step(generations)
        else:
            following = runner.launch(generations)
            pending.results()
            pending = following
        now, busy = time.perf_counter(), time.process_time()
        times.append((now - last) * 1e3)
        work.append((busy - used) * 1e3)
        last, used = now, busy
    if pending is not None:
        pending.results()
    return Spread.of(times), Spread.of(work)


def prefilled(runner: Runner, rows: int, repeats: int = 5) -> Spread:
    """Milliseconds to prefill an empty slot."""
    times: list[float] = []
    for repeat in range(repeats + 1):
        slot, prompt = runner.pool.acquire(), context(runner, rows, repeat)
        synchronize(runner)
        before = time.perf_counter()
        runner.align(slot, prompt)
        synchronize(runner)
        if repeat:  # the first one warms up
            times.append((time.perf_counter() - before) * 1e3)
        slot.release()
    return Spread.of(times)


def synchronize(runner: Runner) -> None:
    if runner.device.type == "cuda":
        torch.cuda.synchronize(runner.device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read plus written, of a copy several times larger than any cache."""
    size = 2**32 if device.type == "cuda" else 2**28
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    return 2 * size / best


def step_bytes(runner: Runner, batch: int, rows: int) -> int:
    """The least that a step reads."""
    weights = [runner.forward.head]
    for layer in runner.forward.layers:
        weights += [layer.qkv, layer.out, layer.audio.gate_up, layer.audio.down]
    return sum(weight.bytes for weight in weights) + batch * rows * runner.pool.shape.bytes_per_row


def drawn(runner: Runner, batch: int, steps: int) -> np.ndarray:
    """Rows [steps, batch, K] of generations that start alike every time."""
    generations = begin(runner, batch, 150)
    out: list[np.ndarray] = []
    for _ in range(steps):
        out.append(np.array([result.row for result in runner.step(generations)]))
    end(generations)
    return np.array(out)


def check(loaded: Loaded, *, batch: int = 3, steps: int = 24) -> dict[str, float]:
    """Of every kind of kernels this device runs: the share of rows that captured steps draw as the same ones do that are not captured, and
    as other kernels do; how far logits and draws are from plain ones. And the largest difference of teacher-forced logits after decoding
    from those of one prefill."""
    plain, captured = (Runner(loaded, max_rows=4096, graphs=graphs, kernels="plain") for graphs in (False, True))
    found: dict[str, float] = {}
    rows: dict[str, np.ndarray] = {}
    for kind in kinds_on(loaded.device):
        for runner in (plain, captured):
            runner.choose(kind)
        rows[kind] = drawn(captured, batch, steps)
        found[f"{kind}_captured_as_not"] = alike(rows[kind], drawn(plain, batch, steps))
        if kind != "plain":
            # In half precision other products lead to other rows before long; the same products never do.
            like = "fused" if kind == "overlapped" else "plain"
            found[f"{kind}_as_{like}"] = alike(rows[kind], rows[like])
            found |= {f"{kind}_logits_worst_of_{many}": captured.kernels_error(kind, many) for many in (1, 16, 64)}
            found[f"{kind}_draws_otherwise"] = captured.drawn_otherwise(kind)
    plain.choose("plain")
    generations = begin(plain, 1, 150)
    for _ in range(steps):
        plain.step(generations)
    slot = generations[0].slot
    held = slot.rows
    copy = Rows(held.tokens.copy(), held.codes.copy(), held.audio.copy())
    decoded = plain.logits(slot)
    fresh = plain.pool.acquire()
    plain.align(fresh, copy)
    worst = float((decoded - plain.logits(fresh)).abs().max())
    return found | {"logits_after_decoding_worst": worst, "logits_std": float(decoded.std())}


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """The share of rows that are the same, while neither has ended."""
    width = min(len(one), len(other))
    return float((one[:width] == other[:width]).all(axis=-1).mean())


def profile(runner: Runner, kind: Kernels, rows: int, steps: int = 20) -> list[dict[str, float | str]]:
    """Of each kernel in a step for one stream: how often it is launched, and its microseconds in all, the most first."""
    runner.choose(kind)
    generations = begin(runner, 1, rows)
    for _ in range(4):
        runner.step(generations)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            runner.step(generations)
        synchronize(runner)
    end(generations)
    kernels = [
        {"kernel": event.key[:80], "count": event.count / steps, "us": event.self_device_time_total / steps}
        for event in seen.key_averages()
    ]
    return sorted(kernels, key=lambda kernel: -float(kernel["us"]))


def _p50(row: dict[str, Any]) -> float:
    """Milliseconds of a step, as the engine takes it."""
    return (row.get("ahead_ms") or row["alone_ms"])["p50"]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--random", metavar="SHAPE", help="true shapes, random weights: 3b")
    parser.add_argument("--layers", type=int, help="with --random: fewer layers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--weight-dtype", default="auto", help="int8: the layers' weights in eight bits")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4])
    parser.add_argument("--contexts", type=numbers, default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--profile", action="store_true", help="on a GPU: where its time goes in a step")
    parser.add_argument("--partial", action="store_true", help="a JSON line after every row too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    place = Place.here()
    print("\n".join(place.lines()))
    types = {"device": options.device, "weight_dtype": options.weight_dtype}

    def loaded_as(dtype: str, layers: int | None) -> Loaded:
        if options.random:
            return random_model(options.random, layers=layers, **types, dtype=dtype)
        return load(options.model, **types, dtype=dtype)

    loaded = loaded_as(options.dtype, options.layers)
    result: dict[str, Any] = {
        "model": loaded.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "weight_dtype": options.weight_dtype,
        "device": str(loaded.device),
        "random_weights": bool(options.random),
    }
    if options.check and loaded.device.type == "cuda":
        result["check"] = {
            "float32": check(loaded_as("float32", 4 if options.random else None)),
            str(loaded.dtype).removeprefix("torch."): check(loaded),
        }
        print("check", json.dumps(result["check"]))
    graphs = False if options.eager else None
    on_gpu = loaded.device.type == "cuda"
    kinds: tuple[Kernels, ...] = ("plain",) if options.eager else kinds_for(loaded.dtype, loaded.device)
    more = 2 * len(kinds) * (options.steps + 8) + 64  # rows that the steps of a context are, and its last page
    gc.collect()  # the checks' runners have contexts and weights of their own
    runner = Runner(loaded, max_rows=max(options.batches) * (max(options.contexts) + more) + 1024, graphs=graphs)
    rate = bandwidth(runner.device)
    print(f"{loaded.name}, {loaded.dtype}, on {loaded.device}; copies at {rate / 1e9:.0f} GB/s\n")
    print(
        "batch  context  kernels     alone p50    p95  CPU p50  "
        + ("ahead p50    p95  " if on_gpu else "")
        + "floor  (ms a step)"
    )
    table: list[dict[str, Any]] = []
    result |= {"bandwidth_gb_s": rate / 1e9, "steps": table}
    generations: list[Generation] = []
    for batch, rows, kind in product(options.batches, options.contexts, kinds):
        if kind == kinds[0]:
            end(generations)
            generations = begin(runner, batch, rows)
        if on_gpu:
            runner.choose(kind)
        alone, work = stepped(runner, generations, options.steps, ahead=False)
        ahead = stepped(runner, generations, options.steps, ahead=True)[0] if on_gpu else None
        floor = step_bytes(runner, batch, rows) / rate * 1e3
        late = f"{ahead.p50:9.2f} {ahead.p95:6.2f}  " if ahead else ""
        print(
            f"{batch:5}  {rows:7}  {kind:10}  {alone.p50:9.2f} {alone.p95:6.2f}  {work.p50:7.2f}  {late}{floor:5.2f}",
            flush=True,
        )
        row: dict[str, Any] = {
            "batch": batch,
            "context": rows,
            "kernels": kind,
            "alone_ms": asdict(alone),
            "cpu_ms": asdict(work),
            "floor_ms": floor,
        }
        table.append(row | ({"ahead_ms": asdict(ahead)} if ahead else {}))
        if options.partial:
            print(emit("step", place, {"partial": True, **result}), flush=True)
    end(generations)
    if options.profile and on_gpu:
        result["profile"] = {kind: profile(runner, kind, options.contexts[0])[:16] for kind in kinds}
        for kind, kernels in result["profile"].items():
            print(f"\n{kind}: kernel, launches, microseconds of a step")
            print("\n".join(f"{each['us']:9.1f} {each['count']:6.1f}  {each['kernel']}" for each in kernels))
    print("\nprefill rows     p50    p95  (ms)")
    prefill: list[dict[str, object]] = []
    for rows in options.contexts:
        spread = prefilled(runner, rows)
        print(f"{rows:12}  {spread.p50:6.1f} {spread.p95:6.1f}", flush=True)
        prefill.append({"rows": rows, "ms": asdict(spread)})
    best = min(table, key=lambda row: (row["batch"], row["context"], _p50(row)))
    result |= {"step_ms_p50": _p50(best), "kernels": best["kernels"], "prefill": prefill}
    line = emit("step", place, result)
    if options.out:
        options.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
