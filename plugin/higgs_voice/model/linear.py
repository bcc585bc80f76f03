"""A projection's weights, held as the processor reads them fastest, or in half the memory.

A step on a CPU is bound by how fast it reads the weights. A checkpoint of half-precision numbers that is run in float32 gains
nothing from the other half of each number: where every weight of a matrix is a float16 number, a packed float16 copy is read
instead, and multiplied and added up in float32. That is lossless: the products are the same, the sums in another order. The
kernels are FBGEMM's, which x86 builds of torch have.

On a CPU a row's sums do not depend on how many rows there are, in float32: where the processor's kernels add up otherwise for few rows,
or for the last few of many, rows of nothing are put behind them (`steady`).

Where asked for, weights are kept as whole numbers of eight bits and a scale for each output (`quantize`). That halves the memory
of a half-precision model and what a step reads of it, and is not lossless.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..captured import BUCKETS
from ..errors import SettingsError

log = logging.getLogger("higgs_voice.linear")


FEW_ROWS = 64
"""Rows of one product by eight-bit weights, at most: what a program of the kernel holds."""
STEP_ROWS = BUCKETS[-1]
"""Up to this many rows, a step's, some such products read less than one conversion of the weights."""


class Int8Linear(nn.Module):
    """In place of an `nn.Linear` without bias: x Wᵀ for weights of eight bits, each output's with a scale of its own.

    Round to nearest, symmetric, the largest weight of an output at 127: what LLM.int8() (Dettmers et al., 2022) does to weights, with
    activations left as they are. transformers' own classes run on it.
    """

    weight: Tensor
    """[N, K] int8."""
    scale: Tensor
    """[N] float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dtype = weight.dtype
        """Of the weights that were."""
        exact = weight.detach().float()
        scale = exact.abs().amax(dim=1).clamp_min(1e-12) / 127
        self.register_buffer("weight", (exact / scale[:, None]).round_().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _floats(self.weight, self.scale, x.dtype))


def pick_weight_dtype(dtype: str) -> str:
    """``auto`` (the model's own type) or ``int8``. Errors: `SettingsError` for any other."""
    if dtype not in ("auto", "int8"):
        raise SettingsError(f"the model's weights can be kept in its own type (auto) or in int8, not in {dtype!r}")
    return dtype


def quantize(layers: nn.Module) -> None:
    """Make every projection in a model's layers an `Int8Linear`, one after another, so that both are held for one at a time."""
    for parent in layers.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child.weight))


class Linear:
    """x Wᵀ for a weight [N, K], which may be in eight bits."""

    def __init__(self, weight: Tensor, scale: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        """``scale`` [N]: of int8 weights, for each output; ``dtype``: what they are multiplied in."""
        self.weight = weight
        """A packed copy may stand beside it; of eight-bit weights, on a CPU, it is the floats that they stand for."""
        self._scale = scale
        if scale is not None and weight.device.type == "cpu":
            # Torch has no product by int8 weights for a CPU that is quicker than one by floats.
            self.weight, self._scale = _floats(weight, scale, dtype), None
        self._packed: Any = _pack(self.weight)

    @property
    def packed(self) -> bool:
        """Whether a float16 copy is read."""
        return self._packed is not None

    @property
    def steadied(self) -> bool:
        """Whether rows are put behind others for the sake of their bits."""
        return self.weight.device.type == "cpu" and self.weight.dtype == torch.float32

    @property
    def bytes(self) -> int:
        """What a product reads of it."""
        return self.weight.numel() * (2 if self.packed else self.weight.element_size())

    def __call__(self, x: Tensor) -> Tensor:
        """[R, K] to [R, N]."""
        if self._scale is not None:
            return self._product(x, self._scale)
        rows = x.shape[0]
        if self.steadied and (more := steady(rows, self.packed) - rows):
            return self._plain(F.pad(x, (0, 0, 0, more)))[:rows]
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return F.linear(x, self.weight)
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` plus the projection of `x`."""
        if self._scale is not None:
            return self._product(x, self._scale, residual)
        if self._packed is not None:
            return self(x).add_(residual)
        rows = x.shape[0]
        if self.steadied and (more := steady(rows, False) - rows):
            x, residual = (F.pad(each, (0, 0, 0, more)) for each in (x, residual))
        return torch.addmm(residual, x, self.weight.t())[:rows]

    def fused(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        gated: bool = False,
        dtype: torch.dtype | None = None,
        ahead: bool = False,
    ) -> Tensor:
        """`FEW_ROWS` rows at most, by one kernel with what stands around the product: see `kernels.project`."""
        from . import kernels

        return kernels.project(
            x, self.weight, self._scale, residual, norm=norm, eps=eps, gated=gated, dtype=dtype, ahead=ahead
        )

    def _product(self, x: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.shape[0] <= STEP_ROWS:
            from . import kernels

            if x.shape[0] <= FEW_ROWS:
                return kernels.project(x, self.weight, scale, residual)
            added = [None] * -(-x.shape[0] // FEW_ROWS) if residual is None else residual.split(FEW_ROWS)
            parts = zip(x.split(FEW_ROWS), added, strict=True)
            return torch.cat([kernels.project(rows, self.weight, scale, more) for rows, more in parts])
        # Many rows are bound by multiplying: one conversion is little beside it.
        product = F.linear(x, _floats(self.weight, scale, x.dtype))
        return product if residual is None else product.add_(residual)


def _floats(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, K] of what int8 weights stand for, rounded once."""
    return (weight * scale[:, None]).to(dtype)


SAME, MOST_MORE = 4, 4
"""Rows that every kernel takes as it takes many, and rows that are put behind others at most."""


@cache
def steady(rows: int, packed: bool) -> int:
    """How many rows to multiply where so many are wanted, so that their bits are those that each has among any others: ``rows`` or a few
    more. It is tried out, once for each number, on this processor: on one with AVX2, MKL's kernels for one to three rows add up otherwise,
    and FBGEMM's for one and two, which also take what six rows at a time leave over."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 224, generator=generator).half().float()
    x = torch.randn(rows + MOST_MORE + SAME, 224, generator=generator)
    ours = _pack(weight) if packed else None

    def product(x: Tensor) -> Tensor:
        return F.linear(x, weight) if ours is None else torch.ops.quantized.linear_dynamic_fp16(x, ours)

    with torch.inference_mode():
        wanted = torch.cat([product(x[start : start + SAME]) for start in range(0, rows, SAME)])[:rows]
        for count in range(rows, rows + MOST_MORE + 1):
            if torch.equal(product(x[:count])[:rows], wanted):
                return count
    log.debug("no number of rows gives %d of them the bits of any other", rows)
    return rows


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
