"""Random weights that two processes with different libraries can both draw: each tensor follows from its name alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch


def draw(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Fill tensors in place. Names are those of the original layout."""
    with torch.no_grad():
        for name, tensor in named:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if tensor.dim() == 1:
                tensor.normal_(1.0, 0.1, generator=generator)
            else:
                tensor.normal_(0.0, 0.03, generator=generator)
