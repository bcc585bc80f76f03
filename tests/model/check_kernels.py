"""Largest difference between `PagedPool.decode_lines` (Triton) and its plain counterpart, printed last.

With `step` for an argument, the largest difference between the logits of the steps that are captured, fused and not, and of the plain one;
with `int8`, that between products by weights of eight bits and those of the same weights as floats; with `fused`, that between products
with what stands around them in one launch and the same one after another; with `packed`, that between the keys and values of prefills of
few rows at once and of the plain ones, of the largest; with `drawn`, the share of codes that the drawing kernels draw otherwise than the
sampler.

Status 1 where that is more than rounding.

Usage: TRITON_INTERPRET=1 python check_kernels.py HEADS_Q,HEADS,DIM
On a GPU, compiled: python check_kernels.py HEADS_Q,HEADS,DIM cuda, and so int8 cuda, fused cuda, packed cuda, drawn cuda
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton.runtime.interpreter as interpreter

from higgs_voice.config import Sampling
from higgs_voice.model import drawing, kernels
from higgs_voice.model.kv import PAGE, KvShape, KvSlot, PagedPool
from higgs_voice.model.linear import FEW_ROWS, STEP_ROWS, Int8Linear, Linear
from higgs_voice.model.loading import load
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import OTHERWISE, Kernels, Runner
from higgs_voice.model.sampling import Sampler

WORST = 1e-3
"""A difference in float32 that is no rounding."""
LENGTHS = [1, PAGE - 1, PAGE, 3 * PAGE + 7, 18 * PAGE + 1]
"""Rows held: a new page begins, is full, and more pages than programs share a context."""


def mend_interpreter() -> None:
    """Triton 3.6's interpreter takes int() of an array of one element, which recent NumPy refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def say(worst: float, limit: float = WORST) -> None:
    """The difference; where it is no rounding, the end, with status 1."""
    print(worst)
    if not worst < limit:
        sys.exit("the kernels compute something else here")


def filled(shape: KvShape) -> tuple[PagedPool, list[KvSlot]]:
    """A pool with slots of `LENGTHS` rows; the same whatever the device."""
    pool = PagedPool(shape, max_rows=40 * PAGE, max_slots=8, max_positions=30 * PAGE)
    slots = [pool.acquire() for _ in LENGTHS]
    for length in range(0, max(LENGTHS), PAGE):  # grown in turns, so that pages lie scattered
        for slot, wanted in zip(slots, LENGTHS, strict=True):
            slot.reserve(min(wanted, length + PAGE) + 1)
    for slot, wanted in zip(slots, LENGTHS, strict=True):
        slot.append(Rows.of_text([0] * wanted, 8))
    pool.data.copy_(torch.randn(pool.data.shape, generator=torch.Generator().manual_seed(0)))
    return pool, slots


@torch.inference_mode()
def main(heads_q: int, heads: int, dim: int, device: str) -> None:
    plain = KvShape(2, heads, dim, torch.float32, torch.device("cpu"), num_codebooks=8)
    pool, slots = filled(plain)
    other, _ = filled(replace(plain, device=torch.device(device)))
    rows = len(slots) + 1  # and one that pads the batch
    torch.manual_seed(1)
    qkv = torch.randn(rows, heads_q + 2 * heads, dim) * 2
    cos, sin = torch.randn(rows, 1, dim), torch.randn(rows, 1, dim)
    lines = torch.tensor([slot.index for slot in slots] + [pool.padding])
    positions = torch.tensor([slot.length for slot in slots] + [0])
    expected = pool.decode(slots, [slot.length for slot in slots], lines, positions)(1, qkv, cos, sin)[:-1]
    there = [x.to(device) for x in (qkv, cos, sin)]
    ours = [page for slot in slots for page in pool._pages[slot.index]]
    worst = 0.0
    for fused in (False, True):
        before = other.data.clone()
        given = [x.clone() for x in there]
        found = other.decode_lines(lines.to(device), positions.to(device), fused=fused)(1, *given).cpu()
        assert torch.isfinite(found).all()
        assert torch.allclose(other.data.cpu()[:, :, ours], pool.data[:, :, ours], atol=1e-6)
        assert not torch.equal(other.data, before)
        other.data.copy_(before)
        worst = max(worst, (found[:-1] - expected).abs().max().item())
    say(worst)


@torch.inference_mode()
def step() -> None:
    """The step that is captured on a GPU against the plain one: logits, and the rows drawn, beside a line that pads."""
    nano = load("nano", device="cpu", dtype="float32")
    nano.model.model.layers = nano.model.model.layers[:1]
    nano.model.config.num_hidden_layers = 1
    error, logits = 0.0, list[torch.Tensor]()
    drawn: list[list[list[list[int]]]] = []
    kinds: tuple[tuple[bool, Kernels], ...] = ((False, "plain"), (True, "plain"), (True, "fused"))
    for paged, kind in kinds:
        fused = kind != "plain"
        runner = Runner(nano, max_rows=1024, max_slots=4, paged=paged, graphs=paged, kernels=kind)
        free = runner.pool.free_rows
        runner._packed = None  # `packed` is about it
        if paged and not fused:
            runner._warm_up(1)  # leaves nothing behind
        assert runner.pool.free_rows == free
        generations = []
        for seed, text in enumerate(["Hello there.", "Yes."]):
            slot = runner.pool.acquire()
            runner.align(slot, runner.prompts.prefix("Speak.") + runner.prompts.opening(text))
            generations.append(runner.start(slot, Sampling(), seed))
            slot.reserve(slot.length + 1)
        lines = runner.sampler.gather(torch.tensor([generation.slot.index for generation in generations]))
        codes, positions = runner.sampler.last(lines.index)
        pool = runner.pool
        slots = [generation.slot for generation in generations]
        if fused:
            assert isinstance(pool, PagedPool)
            error = runner.kernels_error(kind)
            rows = runner._step_captured(pool, kind, torch.tensor([slots[0].index, slots[1].index, 4])).tolist()
            assert [rows[:2]] == drawn[0][:1], (rows, drawn)
            continue
        attend = (
            pool.decode_lines
            if isinstance(pool, PagedPool)
            else partial(pool.decode, slots, [slot.length for slot in slots])
        )
        logits.append(runner.forward.decode(codes, positions, attend(lines.index, positions)))
        rows = [[result.row.tolist() for result in runner.step(generations)] for _ in range(2)]
        if isinstance(pool, PagedPool):
            padded = runner._step_captured(pool, kind, torch.tensor([generations[1].slot.index, 4, 4]))
            assert padded[1].tolist() == padded[2].tolist()
            assert runner.sampler.ints[4].tolist() == runner._begun.tolist()
            rows.append([padded[0].tolist()])
        else:
            rows.append([runner.step(generations[1:])[0].row.tolist()])
        drawn.append(rows)
    assert drawn[0] == drawn[1], drawn
    assert error > 0.0  # they are other kernels
    say(max(error, ((logits[0] - logits[1]).abs().max() / logits[0].abs().max()).item()))  # of the largest logit


@torch.inference_mode()
def fused(device: str) -> None:
    """Each kind of product, with weights of both kinds; sizes that no tile divides, and rows beyond the first tile."""
    worst = 0.0
    for outputs, depth in ((40, 300), (32, 512)):
        torch.manual_seed(outputs)
        made = Int8Linear(torch.randn(2 * outputs, depth)).to(device)
        eight = Linear(made.weight.cpu(), made.scale.cpu())
        eight.weight, eight._scale = made.weight, made.scale  # as it is on a GPU
        exact = Linear(torch.randn(2 * outputs, depth, device=device))
        norm = torch.rand(depth, device=device) + 0.5
        for linear, weight in (
            (exact, exact.weight.double()),
            (eight, made.weight.double() * made.scale.double()[:, None]),
        ):
            for rows in (1, 3, 17, FEW_ROWS):
                x = torch.randn(rows, depth, device=device) * torch.rand(rows, 1, device=device) * 10
                y = x.double()
                normed = y / (y.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.double()
                gate, up = (normed @ weight.t()).chunk(2, dim=-1)
                residual = torch.randn(rows, 2 * outputs, device=device)
                for found, wanted in (
                    (linear.fused(x, norm=norm, eps=1e-5), normed @ weight.t()),
                    (linear.fused(x, norm=norm, eps=1e-5, gated=True), torch.nn.functional.silu(gate) * up),
                    (linear.fused(x, residual=residual), y @ weight.t() + residual),
                    (linear.fused(x, dtype=torch.float64), y @ weight.t()),
                ):
                    worst = max(worst, float(((found - wanted).abs().max() / wanted.abs().max()).item()))
    say(worst)


@torch.inference_mode()
def drawn(device: str) -> None:
    """Lines of many settings: on a GPU for the published model's codes, else for fewer, and for codebooks that are no power of two. Before
    it, what the layers take for the rows that lines produced last."""
    books, codes, steps = (8, 1026, 8) if device == "cuda" else (3, 18, 3)
    make = partial(Sampler, num_codebooks=books, vocabulary=codes, bos=codes - 2, eos=codes - 1)
    sampler = make(count=4, device=torch.device(device))
    for line in range(4):
        spoken = torch.randint(0, codes - 2, (books, 9), generator=torch.Generator().manual_seed(line)).numpy()
        sampler.begin(line, Sampling(), spoken[:, :0].T.astype("int16"), 7 * line, spoken.astype("int16"))
    embedding, cos, sin = (
        torch.randn(shape, device=device) for shape in ((books * codes, 700), (64, 1, 16), (64, 1, 16))
    )
    index = torch.tensor([2, 0, 3], device=device)
    last, positions = sampler.last(index)
    x, *tables, where = drawing.start(sampler, index, embedding, cos, sin)
    offsets = torch.arange(books, device=device) * codes
    assert torch.allclose(x, embedding[last + offsets].sum(dim=1), atol=1e-5)
    assert torch.equal(where, positions)
    assert all(torch.equal(table, whole[positions]) for table, whole in zip(tables, (cos, sin), strict=True))
    limit = OTHERWISE if device == "cuda" else WORST  # the compiler's exponential function is another one
    say(drawing.otherwise(make, torch.device(device), steps=steps), limit)


@torch.inference_mode()
def packed(device: str) -> None:
    """Three contexts with the rows of new chunks, behind nothing, part of a page and more than a page."""
    nano = load("nano", device=device, dtype="float32")
    nano.model.model.layers = nano.model.model.layers[:2]
    nano.model.config.num_hidden_layers = 2
    runner = Runner(nano, max_rows=2048, max_slots=8, paged=True, graphs=True)
    pool = runner.pool
    assert isinstance(pool, PagedPool)
    if device == "cuda":
        runner.warm_up(1)
    assert runner.packed, "it was left off"
    prefix, opening = runner.prompts.prefix("Speak."), runner.prompts.opening
    frames = torch.randint(0, 256, (8, 60), generator=torch.Generator().manual_seed(0)).numpy().astype("int16")
    past = runner.prompts.exchange("It is here.", frames)
    assert len(past) > PAGE + 3
    pasts = [prefix[:0], past[:9], past[: PAGE + 3]]
    parts = [past[-7:], opening("No.")[:3], past[PAGE + 3 :][:5] + opening("Go.")[:3]]
    assert all(0 < part.audio.sum() < len(part) for part in (parts[0], parts[2]))
    found: list[list[torch.Tensor]] = []
    for at_once in (True, False):
        found.append([])
        slots = [pool.acquire() for _ in parts]
        for slot, before, part in zip(slots, pasts, parts, strict=True):
            slot.reserve(len(before) + len(part))
            if len(before):
                runner._prefill(slot, before)
        if at_once:
            assert runner._prefill_packed(slots, parts) is not None
        else:
            for slot, part in zip(slots, parts, strict=True):
                runner._prefill(slot, part)
        for slot, before, part in zip(slots, pasts, parts, strict=True):
            assert slot.length == len(before) + len(part)
        for slot in slots:
            pages = torch.tensor(pool._pages[slot.index], device=device)
            found[-1] += [part.cpu() for layer in range(2) for part in pool._gathered(layer, pages, slot.length)]
    say(max(((one - two).abs().max() / two.abs().max()).item() for one, two in zip(*found, strict=True)))


@torch.inference_mode()
def int8(device: str) -> None:
    """Few rows, by the kernel, and many, by a conversion; sizes that no block divides. Before it, the kernel that shows whether any can
    be compiled."""
    assert kernels.probe(torch.device(device))
    worst = 0.0
    for outputs, depth in ((80, 300), (96, 512), (8200 if device == "cuda" else 40, 130)):
        torch.manual_seed(outputs)
        made = Int8Linear(torch.randn(outputs, depth)).to(device)
        linear = Linear(made.weight.cpu(), made.scale.cpu())
        linear.weight, linear._scale = made.weight, made.scale  # as it is on a GPU
        for rows in (1, 3, 16, 17, FEW_ROWS, FEW_ROWS + 1, STEP_ROWS + 1):
            x, residual = (torch.randn(rows, size, device=device) for size in (depth, outputs))
            expected = x.double() @ (made.weight.double() * made.scale.double()[:, None]).t()
            for found, wanted in ((linear(x), expected), (linear.added(x, residual), expected + residual)):
                worst = max(worst, float(((found - wanted).abs().max() / wanted.abs().max()).item()))
    say(worst)


if __name__ == "__main__":
    where = sys.argv[2] if len(sys.argv) > 2 else "cpu"
    if where == "cpu":
        mend_interpreter()
    if sys.argv[1] == "step":
        step()
        sys.exit()
    if one := {"int8": int8, "fused": fused, "packed": packed, "drawn": drawn}.get(sys.argv[1]):
        one(where)
        sys.exit()
    main(*map(int, sys.argv[1].split(",")), where)
