"""When a stream is ended although the model has not ended it; the same for every engine that runs a model."""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..audio import FRAME_RATE, SAMPLE_RATE
from ..config import Settings
from ..errors import SilenceError


class Guards(Settings):
    """When a stream is ended although the model has not ended it."""

    base_s: float = Field(default=3.0, gt=0.0)
    """Runaway: more than base_s + s_per_char * letters of audio, where a wide character (CJK) counts as three letters."""
    s_per_char: float = Field(default=0.15, gt=0.0)
    """About twice slow speech; half of it and a small base would still let everything pass that ends by itself."""
    silence_s: float = Field(default=3.0, gt=0.0)
    """Silence: that much without voice, after voice or before any."""
    silence_level: float = Field(default=0.004, ge=0.0)
    """Peak, as a share of full scale, below which sound counts as silence."""
    min_frames: int = Field(default=3, ge=1)
    """Collapse: an end before that many frames; tried again with other seeds."""
    retries: int = Field(default=2, ge=0)

    def max_frames(self, text: str) -> int:
        """Frames that a text may take before it counts as a runaway."""
        return int((self.base_s + self.s_per_char * _letters(text)) * FRAME_RATE)


class SilenceWatch:
    """Listens to one stream for silence that goes on."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._silent = 0

    def hear(self, samples: NDArray[np.float32]) -> SilenceError | None:
        """More of the stream, float32 [n]; the error that ends it, once it has been silent for too long."""
        loud = np.flatnonzero(np.abs(samples) > self._guards.silence_level)
        self._silent = self._silent + samples.size if not loud.size else samples.size - 1 - int(loud[-1])
        if self._silent > self._guards.silence_s * SAMPLE_RATE:
            return SilenceError(f"stopped after {self._guards.silence_s:.1f} s of silence")
        return None


def _letters(text: str) -> int:
    """Characters as a measure of how long a text sounds: a wide one is a syllable."""
    return sum(3 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


__all__ = ["Guards", "SilenceWatch"]
