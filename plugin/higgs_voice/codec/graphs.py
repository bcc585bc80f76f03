"""Pieces of sound by CUDA graphs: a few shapes come again and again, and a piece is some hundred small launches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..captured import BUCKETS, bucket_of, capture
from .layers import Span

log = logging.getLogger("higgs_voice.codec")

TOLERANCE = 1e-4
"""Samples of a graph may differ from the function's by so much: it may have been given other kernels."""

Shape = tuple[int, Span]
"""Frames of a window, and the samples that are wanted of it."""


class GraphedPieces:
    """``function(codes [B, K, n] int64 on the device, samples)`` [B, samples] on the device, by one graph for each of the
    ``shapes`` and each bucket of B.

    Every utterance of a batch stands for itself, so a batch is padded with anything. Other shapes, and batches beyond the
    largest bucket, are simply computed. So is all, with a warning, from the first time that a capture fails or that a graph
    gives other samples than the function. Not thread-safe: the codec's thread owns it, with its stream.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Span], Tensor],
        shapes: Collection[Shape],
        num_codebooks: int,
        device: torch.device,
        *,
        disable: bool = False,
    ) -> None:
        self._function = function
        self.shapes = shapes
        self._num_codebooks = num_codebooks
        self._device = device
        self.disabled = disable
        self._graphs: dict[tuple[int, Shape], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._memory: Any = None

    def __call__(self, windows: NDArray[np.int64], samples: Span) -> Tensor:
        """Sound [B, samples] of codes [B, K, n]. It is overwritten by the next call."""
        shape, bucket = (windows.shape[2], samples), bucket_of(len(windows))
        given = torch.from_numpy(windows)
        if self.disabled or bucket is None or shape not in self.shapes:
            return self._function(given.to(self._device), samples)
        if (bucket, shape) not in self._graphs:
            try:
                self._capture(bucket, shape)
            except RuntimeError:
                log.warning("the codec's pieces cannot be captured here; it goes on without, slower", exc_info=True)
                self.disabled = True
                self._graphs.clear()
                return self._function(given.to(self._device), samples)
        graph, codes, out = self._graphs[bucket, shape]
        codes[: len(windows)].copy_(given)
        graph.replay()
        return out[: len(windows)]

    def warm_up(self, max_batch: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Capture all shapes for batches up to this size, so that no stream waits for it."""
        for bucket in BUCKETS:
            for length, samples in sorted(self.shapes, key=lambda shape: shape[0]):
                if self.disabled or should_stop():
                    return
                self(np.zeros((bucket, self._num_codebooks, length), np.int64), samples)
            if bucket >= max_batch:
                return

    def _capture(self, bucket: int, shape: Shape) -> None:
        length, samples = shape
        codes = torch.zeros((bucket, self._num_codebooks, length), dtype=torch.int64, device=self._device)
        graph, out, expected = capture(lambda: self._function(codes, samples), self._device, self._memory)
        self._memory = graph.pool()
        if not torch.allclose(out, expected, atol=TOLERANCE, rtol=0.0):
            raise RuntimeError(f"a captured piece for {bucket} streams gives other sound than a plain one")
        self._graphs[bucket, shape] = (graph, codes, out)
