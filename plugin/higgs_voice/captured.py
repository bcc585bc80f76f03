"""Work on a GPU: what a thread sends there, on which stream, and how it is captured as a CUDA graph, for the model's steps and the
codec's pieces, which run on threads of their own."""

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
_streams: dict[tuple[torch.device, str], torch.cuda.Stream] = {}


def stream_of(device: torch.device, use: str, priority: int = 0) -> torch.cuda.Stream:
    """The process's stream for one use of a GPU. Torch's own are a few that go round, and one on which is captured must be nobody
    else's. A ``priority`` below 0 goes before others."""
    if (device, use) not in _streams:
        _streams.setdefault((device, use), torch.cuda.Stream(device, priority=priority))
    return _streams[device, use]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` of the CPU on a device. To a GPU it goes behind the work under way, which other memory than pinned would wait for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def bucket_of(batch: int) -> int | None:
    """The batch size that is captured for `batch`; None: it is larger than all."""
    return next((size for size in BUCKETS if size >= batch), None)


def capture(
    function: Callable[[], Tensor], device: torch.device, memory: Any = None, priority: int = 0
) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    """``function`` as a graph: the graph, replayed once; what it writes its result to; and the result of calling the function.

    The function reads and writes tensors that stay where they are, and does not wait for the GPU. ``memory``: the pool of an
    earlier graph of the same priority, to be shared with it where no two of them run at once. ``priority``: of what is captured, on
    whatever stream it is replayed. Other threads may go on working on the GPU, on streams of their own.

    Errors: `RuntimeError` where it cannot be captured. The thread's stream is then what it was; torch may refuse every later
    capture in this process.
    """
    with _one_at_a_time:
        ours = torch.cuda.current_stream(device)
        stream = stream_of(device, f"capture at {priority}", priority)  # always the same, or graphs cannot share memory
        # What is compiled or allocated on first use must not be part of the graph.
        expected = torch.empty(0)
        stream.wait_stream(ours)
        with torch.cuda.stream(stream):
            for _ in range(2):
                expected = function()
        ours.wait_stream(stream)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        try:
            # In this mode what another thread does neither fails nor spoils the capture.
            with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
                out = function()
        finally:
            torch.cuda.set_stream(ours)  # a capture that fails at its end leaves the thread on the other one
        graph.replay()
        return graph, out, expected
