"""Prefills of few rows, of one context or of several at once, as CUDA graphs: a wrapper like `graphs`, not a second way to compute.

The rows stand in a table, [4 + K, R]: of each row its line in the pool's table, its position, its token, whether it is audio, and its
codes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..captured import capture, sent
from .prompt import Rows

log = logging.getLogger("higgs_voice.packed")

PACKS = (16, 32, 64, 128)
"""Rows of a prefill that are captured; fewer are padded to the next one."""
MOST_READ = 128 * 2048
"""Rows of context that a packed prefill reads at most, over all of its rows: each reads its whole context by itself. Beyond it, launches cost
less than that."""


def reading(past: int, rows: int) -> int:
    """Rows of context that so many rows behind a past read, each by itself."""
    return rows * (past + rows)


def table_of(lines: ArrayLike, positions: ArrayLike, rows: Rows) -> NDArray[np.int64]:
    """The table of ``rows``, each with its line and position [R]."""
    tokens = np.where(rows.audio, 0, rows.tokens)  # a placeholder may be no token of the model's
    return np.vstack((lines, positions, tokens, rows.audio, rows.codes.T)).astype(np.int64)


def any_rows(config: Any, count: int, first: int) -> Rows:
    """Rows to try a model of this configuration with: text and audio by turns, three each; others for every ``first``."""
    at = np.arange(first, first + count)
    codes = (37 * at[:, None] + np.arange(config.num_codebooks)) % config.codebook_size
    audio = at // 3 % 2 == 1
    return Rows(
        (31 * at % config.vocab_size).astype(np.int32), np.where(audio[:, None], codes, 0).astype(np.int16), audio
    )


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
