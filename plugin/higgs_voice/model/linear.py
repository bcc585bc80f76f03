"""A projection's weights, held as the processor reads them fastest.

A step on a CPU is bound by how fast it reads the weights. A checkpoint of half-precision numbers that is run in float32 gains
nothing from the other half of each number: where every weight of a matrix is a float16 number, a packed float16 copy is read
instead, and multiplied and added up in float32. That is lossless: the products are the same, the sums in another order. The
kernels are FBGEMM's, which x86 builds of torch have; a row's sums do not depend on how many rows there are.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger("higgs_voice.linear")


class Linear:
    """x Wᵀ for a weight [N, K]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        """As it was given; a packed copy stands beside it."""
        self._packed: Any = _pack(weight)

    @property
    def packed(self) -> bool:
        """Whether a float16 copy is read, and one row gives the same bits as several."""
        return self._packed is not None

    @property
    def bytes(self) -> int:
        """What a product reads of it."""
        return self.weight.numel() * (2 if self.packed else self.weight.element_size())

    def __call__(self, x: Tensor) -> Tensor:
        """[R, K] to [R, N]."""
        if self._packed is None:
            return F.linear(x, self.weight)
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` plus the projection of `x`."""
        if self._packed is None:
            return torch.addmm(residual, x, self.weight.t())
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed).add_(residual)


def _pack(weight: Tensor) -> Any:
    """The packed copy, or None where it would lose something or the processor has no kernel for it."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if torch.backends.quantized.engine not in ("x86", "fbgemm") or not torch.equal(weight.half().float(), weight):
        return None
    try:
        return torch.ops.quantized.linear_prepack_fp16(weight, None)
    except RuntimeError:
        log.debug("no packed float16 weights on this processor", exc_info=True)
        return None
