"""Capturing work on a GPU as a CUDA graph, for the model's steps and the codec's pieces, which run on threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Batch sizes that are captured; a batch is padded to the next one."""

_one_at_a_time = threading.Lock()
"""PyTorch allows one capture at a time in a process."""


def bucket_of(batch: int) -> int | None:
    """The batch size that is captured for `batch`; None: it is larger than all."""
    return next((size for size in BUCKETS if size >= batch), None)


def capture(
    function: Callable[[], Tensor], device: torch.device, memory: Any = None
) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    """``function`` as a graph: the graph, replayed once; what it writes its result to; and the result of calling the function.

    The function reads and writes tensors that stay where they are, and does not wait for the GPU. ``memory``: the pool of an
    earlier graph, to be shared with it where no two of them run at once. What other threads do on the GPU meanwhile neither
    fails nor becomes part of it. Errors: `RuntimeError` where it cannot be captured.
    """
    with _one_at_a_time:
        # What is compiled or allocated on first use must not be part of the graph.
        expected = torch.empty(0)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                expected = function()
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            out = function()
        graph.replay()
        return graph, out, expected
