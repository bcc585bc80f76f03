"""Pieces of sound by CUDA graphs: a few shapes come again and again, and a piece is some hundred small launches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..captured import BUCKETS, bucket_of, capture, stream_of
from .layers import Span

log = logging.getLogger("higgs_voice.codec")

LARGEST = 32
"""Streams of one batch: more than that have a piece of one shape ready at once only where the codec is behind, and then the
launches are little beside the work."""
TOLERANCE = 1e-3
"""Samples of a graph, within -1 to 1, may differ from the function's by so much: it may have been given other kernels, and those of
TF32, which is torch's choice for convolutions on a GPU, differ by some 1e-4."""
PRIORITY = -1
"""Of the codec's work on a GPU, before the model's steps: a piece is short, and somebody is about to play it. What is captured keeps that
of the stream on which it was."""

Shape = tuple[int, Span]
"""Frames of a window, and the samples that are wanted of it."""


def pieces_stream(device: torch.device) -> torch.cuda.Stream:
    """On which pieces of streams are decoded on a GPU."""
    return stream_of(device, "pieces", PRIORITY)


def clips_stream(device: torch.device) -> torch.cuda.Stream:
    """On which whole clips go through the codec on a GPU."""
    return stream_of(device, "clips")


class GraphedPieces:
    """``function(codes [B, K, n] int64 on the device, samples)`` [B, samples] on the device, by one graph for each of the
    ``shapes`` and each bucket of B, once `warm_up` has captured them.

    Every utterance of a batch stands for itself, so a batch is padded with anything. What has no graph is simply computed:
    all of it, with a warning, where a capture fails or a graph gives other samples than the function. Not thread-safe: the
    codec's thread owns it, with its stream.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Span], Tensor],
        shapes: Collection[Shape],
        num_codebooks: int,
        device: torch.device,
    ) -> None:
        self._function = function
        self.shapes = shapes
        self._num_codebooks = num_codebooks
        self._device = device
        self._graphs: dict[tuple[int, Shape], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._memory: Any = None

    def __call__(self, windows: NDArray[np.int64], samples: Span) -> Tensor:
        """Sound [B, samples] of codes [B, K, n]. It is overwritten by the next call."""
        given, bucket = torch.from_numpy(windows), bucket_of(len(windows))
        found = self._graphs.get((bucket, (windows.shape[2], samples))) if bucket is not None else None
        if found is None:
            return self._function(given.to(self._device), samples)
        graph, codes, out = found
        codes[: len(windows)].copy_(given)
        graph.replay()
        return out[: len(windows)]

    def warm_up(self, max_batch: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Capture all shapes for batches up to this size, or `LARGEST`. ``should_stop`` is asked before each of them."""
        largest = bucket_of(min(max_batch, LARGEST)) or LARGEST
        # The largest first: those after it find room in its memory.
        for bucket in sorted((size for size in BUCKETS if size <= largest), reverse=True):
            for shape in sorted(self.shapes, key=lambda shape: shape[0], reverse=True):
                if should_stop():
                    return
                try:
                    self._capture(bucket, shape)
                except torch.OutOfMemoryError:
                    log.info("no memory for the graph of %d pieces of %d frames: they are computed", bucket, shape[0])
                except RuntimeError:
                    log.warning("the codec's pieces cannot be captured here; it goes on without, slower", exc_info=True)
                    self._graphs.clear()
                    return

    def _capture(self, bucket: int, shape: Shape) -> None:
        length, samples = shape
        codes = torch.zeros((bucket, self._num_codebooks, length), dtype=torch.int64, device=self._device)
        graph, out, _ = capture(lambda: self._function(codes, samples), self._device, self._memory, PRIORITY)
        self._memory = graph.pool()
        # Other codes than it was captured with: a graph that does not read them would go unseen.
        codes += torch.arange(length, device=self._device)
        graph.replay()
        if not torch.allclose(out, self._function(codes, samples), atol=TOLERANCE, rtol=0.0):
            raise RuntimeError(f"a captured piece for {bucket} streams gives other sound than a plain one")
        self._graphs[bucket, shape] = (graph, codes, out)
