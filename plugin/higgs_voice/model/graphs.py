"""A step function as CUDA graphs: captured once a batch size, replayed after that. A wrapper, not a second loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..captured import BUCKETS, bucket_of, capture, sent

log = logging.getLogger("higgs_voice.graphs")

QUICKER = 0.97
"""Share of the first function's time that another one takes at most, to be taken: two measurements of one graph differ by as much."""


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """A function that does what the first one does by other kernels."""

    function: Callable[[Tensor], Tensor]
    up_to: int = BUCKETS[-1]
    """Streams in a batch for which it is tried, at most."""


class CudaGraphed:
    """``function`` over lines of the engine's tables [B], as one graph for each bucket of B.

    The function reads and writes static tensors only, and its result [B, …] depends on each line alone. A batch is padded
    with a line that is nobody's and on which the function always gives the same. With ``disable``, or beyond the largest
    bucket, the function is simply called. So it is, with a warning, from the first time that a capture fails or that a
    graph draws something else than the function; and for a bucket that had no memory when it was to be captured.

    ``others`` raise where they cannot: a bucket takes whichever is quickest on this device, the first one
    unless another takes less than `QUICKER` of its time.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *others: Other,
        padding: int,
        disable: bool = False,
    ) -> None:
        self._function = function
        self.others = list(others)
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

    @torch.inference_mode()  # a tensor that was made in this mode may be written to in it alone
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
        graph, out = self._captured(self._function, lines)
        others = [other for other in self.others if bucket <= other.up_to]
        took = took_first = timed(graph, device) if others else 0.0
        for other in others:
            try:
                found = self._captured(other.function, lines)
            except torch.OutOfMemoryError:
                continue  # there may be room for it with another batch size
            except Exception:
                log.warning("a step by other kernels is left out: they do not run here", exc_info=True)
                self.others.remove(other)
                continue
            if (seconds := timed(found[0], device)) < min(took, QUICKER * took_first):
                (graph, out), took = found, seconds
        if others:
            log.info("a step for %d streams: %.3f ms, %.3f by the first kernels", bucket, took * 1e3, took_first * 1e3)
        self._graphs[bucket] = (graph, lines, out)
        self._filled[bucket] = (self._padding,) * bucket

    def _captured(self, function: Callable[[Tensor], Tensor], lines: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Only the padding's line moves.
        graph, out, expected = capture(lambda: function(lines), lines.device, self._memory)
        self._memory = graph.pool()
        if not torch.equal(out, expected):
            raise RuntimeError(f"a captured step for {len(lines)} streams draws other codes than a plain one")
        return graph, out


def timed(graph: torch.cuda.CUDAGraph, device: torch.device) -> float:
    """Seconds that a graph takes, at best: others may use the device meanwhile."""
    stream, repeats, best = torch.cuda.current_stream(device), 5, float("inf")
    for _ in range(3):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record(stream)
        for _ in range(repeats):
            graph.replay()
        ended.record(stream)
        ended.synchronize()
        best = min(best, began.elapsed_time(ended) / 1e3 / repeats)
    return best
