"""A step, and a prefill of few rows, as CUDA graphs: captured once a size, replayed after that. Wrappers, not second loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..captured import bucket_of, capture, sent

log = logging.getLogger("higgs_voice.graphs")

PACKS = (16, 32, 64, 128)
"""Rows of a prefill that are captured; fewer are padded to the next one."""


class CudaGraphed:
    """``function`` over lines of the engine's tables [B], as one graph for each bucket of B.

    The function reads and writes static tensors only, and its result [B, …] depends on each line alone. A batch is padded
    with a line that is nobody's and on which the function always gives the same. With ``disable``, or beyond the largest
    bucket, the function is simply called. So it is, with a warning, from the first time that a capture fails or that a
    graph draws something else than the function; and for a bucket that had no memory when it was to be captured.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, padding: int, disable: bool = False) -> None:
        self._function = function
        self._padding = padding
        self.disabled = disable
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._filled: dict[int, tuple[int, ...]] = {}
        self._left_out: set[int] = set()
        """Buckets for which there was no memory."""
        self._memory: Any = None

    def reset(self) -> None:
        """Forget all graphs: a static tensor was replaced."""
        self._graphs.clear()
        self._filled.clear()
        self._left_out.clear()
        self._memory = None

    def __call__(self, which: Sequence[int], device: torch.device) -> Tensor:
        """The function over the lines ``which``. The result is overwritten by the next call with the same bucket."""
        bucket = bucket_of(len(which))
        if self.disabled or bucket is None or bucket in self._left_out:
            return self._function(sent(torch.tensor(which), device))
        if bucket not in self._graphs:
            try:
                self._capture(bucket, device)
            except torch.OutOfMemoryError:
                log.info("no memory for the graph of a step for %d streams: such steps are taken without", bucket)
                self._left_out.add(bucket)
                return self._function(sent(torch.tensor(which), device))
            except RuntimeError:
                log.warning(
                    "CUDA graphs cannot be captured here; the engine goes on without them, slower", exc_info=True
                )
                self.disabled = True
                return self._function(sent(torch.tensor(which), device))
        graph, lines, out = self._graphs[bucket]
        if self._filled.get(bucket) != tuple(which):
            padded = [*which, *[self._padding] * (bucket - len(which))]
            lines.copy_(torch.tensor(padded, dtype=torch.int64).pin_memory(), non_blocking=True)
            self._filled[bucket] = tuple(which)
        graph.replay()
        return out[: len(which)]

    def _capture(self, bucket: int, device: torch.device) -> None:
        lines = torch.full((bucket,), self._padding, dtype=torch.int64, device=device)
        # Only the padding's line moves.
        graph, out, expected = capture(lambda: self._function(lines), device, self._memory)
        self._memory = graph.pool()
        if not torch.equal(out, expected):
            raise RuntimeError(f"a captured step for {bucket} streams draws other codes than a plain one")
        self._graphs[bucket] = (graph, lines, out)
        self._filled[bucket] = (self._padding,) * bucket


class RowsGraphed:
    """``function`` over a table of rows [C, R], as one graph for each of `PACKS`.

    The function reads and writes tensors that stay where they are, and does the same each time that it is given the same rows. Its
    result [R, …] follows from everything that it writes, so that a graph can be held against the function by it. With ``disable`` the
    function is simply called. Whoever calls this has another way for the same: it is told to take it, with a warning, from the first
    time on that something fails or a graph finds something else than the function; and where there was no memory for a graph.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], *, padding: NDArray[np.int64], disable: bool = False
    ) -> None:
        """``padding`` [C]: a row that is nobody's."""
        self._function = function
        self._padding = padding[:, None]
        self.disabled = disable
        self.failed = False
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._left_out: set[int] = set()
        """Sizes for which there was no memory."""
        self._memory: Any = None

    @property
    def most(self) -> int:
        """Rows that a call can take, as far as is known; 0 once it failed."""
        return 0 if self.failed else max((size for size in PACKS if size not in self._left_out), default=0)

    def __call__(self, rows: NDArray[np.int64], device: torch.device) -> Tensor | None:
        """The function over ``rows`` [C, R], or None where another way is to be taken; some of it may have been done then. The result
        is overwritten by the next call with the same bucket."""
        if self.disabled:
            return self._function(sent(torch.from_numpy(rows), device))
        count = rows.shape[1]
        bucket = next((size for size in PACKS if size >= count and size not in self._left_out), None)
        if bucket is None or self.failed:
            return None
        padded = np.concatenate((rows, np.repeat(self._padding, bucket - count, axis=1)), axis=1)
        try:
            if bucket not in self._graphs:
                self._graphs[bucket] = self._capture(bucket, padded, device)
            return self._replayed(*self._graphs[bucket], padded)[:count]
        except torch.OutOfMemoryError:
            log.info("no memory for the graph of a prefill of %d rows: such are prefilled without", bucket)
            self._left_out.add(bucket)
        except Exception:  # the other way needs none of this, and fails by itself where the device is gone
            log.warning("prefills of few rows cannot be CUDA graphs here; they go on without, slower", exc_info=True)
            self.failed = True
            self._graphs.clear()
        return None

    def _capture(
        self, bucket: int, rows: NDArray[np.int64], device: torch.device
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """A graph that was seen to do for ``rows`` what the function does."""
        # Captured over padding alone: what these rows write is then the graph's own doing when the two are compared.
        table = sent(torch.from_numpy(np.repeat(self._padding, bucket, axis=1)), device)
        graph, out, _ = capture(lambda: self._function(table), device, self._memory)
        self._memory = graph.pool()
        found = self._replayed(graph, table, out, rows)
        worst = apart(found, self._function(table))
        if not worst <= tolerance(found.dtype):
            raise RuntimeError(f"a captured prefill of {bucket} rows is {worst:.3g} off a plain one")
        return graph, table, out

    @staticmethod
    def _replayed(graph: torch.cuda.CUDAGraph, table: Tensor, out: Tensor, rows: NDArray[np.int64]) -> Tensor:
        # A fresh tensor each time: one that is being copied from may not be written to.
        table.copy_(torch.from_numpy(rows).pin_memory(), non_blocking=True)
        graph.replay()
        return out


def apart(found: Tensor, expected: Tensor) -> float:
    """How far rows [R, H] are from what they should be: the length of the difference over that of the row, of the worst row."""
    expected = expected.float()
    off = torch.linalg.vector_norm(found.float() - expected, dim=-1)
    return float((off / torch.linalg.vector_norm(expected, dim=-1).clamp(min=1e-30)).max())


def tolerance(dtype: torch.dtype) -> float:
    """How far `apart` two ways may be that add up in another order, through all layers of a model; anything that is wrong is further."""
    return max(32 * torch.finfo(dtype).eps, 1e-3)
