"""`PagedPool.decode_lines` in plain torch, so that what a GPU does with packed rows can be done anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from higgs_voice.model.kv import PAGE, Attend, PagedPool, attention, rotate


def plain_lines(pool: PagedPool, lines: Tensor, positions: Tensor, **_: Any) -> Attend:
    """All rows' keys and values are stored, then each row looks at its line's pages up to its own position: nothing else."""

    def attend(layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, more = pool.shape.heads, len(qkv) - len(lines)
        qkv, cos, sin = (each[: len(lines)] for each in (qkv, cos, sin))  # rows behind are nobody's
        rotated = rotate(qkv[:, :-heads], cos, sin)
        pages = pool.table[lines, positions // PAGE].long()
        pool.data[layer, 0][pages, :, positions % PAGE] = rotated[:, -heads:]
        pool.data[layer, 1][pages, :, positions % PAGE] = qkv[:, -heads:]
        query = rotated[:, :-heads].unflatten(1, (heads, -1))
        out: list[Tensor] = []
        for row, (line, position) in enumerate(zip(lines.tolist(), positions.tolist(), strict=True)):
            held = pool.table[line, : position // PAGE + 1].long()
            k, v = pool.data[layer][:, held].transpose(1, 2).flatten(2, 3)[:, :, : position + 1]
            out.append(attention(query[row], k, v).view(1, -1))
        return F.pad(torch.cat(out), (0, 0, 0, more))

    return attend


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels."""
    monkeypatch.setattr(PagedPool, "decode_lines", plain_lines)


class Replayed:
    """What stands for a CUDA graph: it does what was captured, over what stands in the captured tensors by then."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.out: Tensor = function().clone()

    def replay(self) -> None:
        self.out.copy_(self._function())

    def pool(self) -> str:
        return "memory"


def fake_capture(function: Any, device: torch.device, memory: Any = None) -> Any:
    """`captured.capture` with a `Replayed`."""
    graph = Replayed(function)
    return graph, graph.out, graph.out.clone()
