"""Largest difference between `PagedPool.decode_lines` (Triton) and its plain counterpart, printed last.

Usage: TRITON_INTERPRET=1 python check_kernels.py HEADS_Q,HEADS,DIM
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton.runtime.interpreter as interpreter

from higgs_voice.model.kv import PAGE, KvShape, PagedPool
from higgs_voice.model.prompt import Rows

LENGTHS = [1, PAGE - 1, PAGE, 3 * PAGE + 7, 18 * PAGE + 1]
"""Rows held: a new page begins, is full, and more pages than programs share a context."""


def mend_interpreter() -> None:
    """Triton 3.6's interpreter takes int() of an array of one element, which recent NumPy refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


@torch.inference_mode()
def main(heads_q: int, heads: int, dim: int) -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    shape = KvShape(layers=2, heads=heads, head_dim=dim, dtype=torch.float32, device=device, num_codebooks=8)
    pool = PagedPool(shape, max_rows=40 * PAGE, max_slots=8, max_positions=30 * PAGE)
    slots = [pool.acquire() for _ in LENGTHS]
    for length in range(0, max(LENGTHS), PAGE):  # grown in turns, so that pages lie scattered
        for slot, wanted in zip(slots, LENGTHS, strict=True):
            slot.reserve(min(wanted, length + PAGE) + 1)
    for slot, wanted in zip(slots, LENGTHS, strict=True):
        slot.append(Rows.of_text([0] * wanted, 8))
    pool.data.normal_()
    rows = len(slots) + 1  # and one that pads the batch
    qkv = torch.randn(rows, heads_q + 2 * heads, dim) * 2
    cos, sin = torch.randn(rows, 1, dim), torch.randn(rows, 1, dim)
    lines = torch.tensor([slot.index for slot in slots] + [pool.padding])
    positions = torch.tensor([slot.length for slot in slots] + [0])
    before = pool.data.clone()
    expected = pool.decode(slots, lines, positions)(1, qkv, cos, sin)[:-1]
    stored, pool.data[:] = pool.data.clone(), before
    found = pool.decode_lines(lines, positions)(1, qkv, cos, sin)
    assert torch.isfinite(found).all()
    same = [page for held in pool._pages.values() for page in held]
    assert torch.allclose(pool.data[:, :, same], stored[:, :, same], atol=1e-6)
    print((found[:-1] - expected).abs().max().item())


if __name__ == "__main__":
    mend_interpreter()
    main(*map(int, sys.argv[1].split(",")))
