"""Codes of a reference clip."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import HiggsAudioV2TokenizerModel

from ..audio import MAX_CLIP_S, MIN_CLIP_S, SAMPLE_RATE
from ..errors import ClipError


class Encoder:
    """The codec's encoder; not thread-safe."""

    def __init__(self, codec: HiggsAudioV2TokenizerModel, *, max_s: float = MAX_CLIP_S) -> None:
        """`codec` is used as it is: its device and its dtype, in evaluation mode."""
        self._codec = codec.eval()
        self._dtype = next(codec.acoustic_encoder.parameters()).dtype
        self.hop = int(codec.config.hop_length)
        """Samples a frame."""
        self.max_s = max_s

    def encode(self, pcm: NDArray[np.float32]) -> NDArray[np.int16]:
        """Codes [K, T] of mono sound at 24 kHz, float32 [n]; T is n / hop, rounded up.

        The sound is filled up with silence to whole frames. At any other length the codec's semantic and acoustic
        branches may disagree about the number of frames, and transformers then shifts the acoustic one by half a frame;
        at whole frames both are aligned, and the codes are those of transformers' processor.

        Errors: `ClipError`.
        """
        sound = np.asarray(pcm, dtype=np.float32)
        if sound.ndim != 1:
            raise ClipError(f"a clip to encode must be mono of shape [n], not {list(sound.shape)}")
        seconds = sound.size / SAMPLE_RATE
        if not MIN_CLIP_S <= seconds <= self.max_s:
            raise ClipError(
                f"a clip to encode must last {MIN_CLIP_S} to {self.max_s:.0f} s, this one lasts {seconds:.2f} s"
            )
        if not np.isfinite(sound).all():
            raise ClipError("a clip to encode holds values that are not finite (NaN or infinity)")
        with torch.inference_mode():
            values = torch.from_numpy(sound).to(self._codec.device, self._dtype)
            values = F.pad(values, (0, -values.shape[0] % self.hop))[None, None]  # [1, 1, T * hop]
            codes = cast(torch.Tensor, self._codec.encode(values, return_dict=False))  # [1, K, T]
            return codes[0].to("cpu", torch.int16).numpy()
