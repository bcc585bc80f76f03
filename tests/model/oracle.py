"""transformers' own model class, asked the questions that the tests ask of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from higgs_voice.model.loading import Loaded
from higgs_voice.model.prompt import Rows


def model_inputs(rows: Rows) -> dict[str, torch.Tensor]:
    """Rows as the arguments of the model class and of `generate`."""
    inputs: dict[str, torch.Tensor] = {"input_ids": torch.from_numpy(rows.tokens.astype(np.int64))[None]}
    if rows.audio.any():
        audio = torch.from_numpy(rows.codes[rows.audio].astype(np.int64))[None]
        inputs |= {"audio_input_ids": audio, "audio_input_ids_mask": torch.ones(audio.shape[:2], dtype=torch.bool)}
    return inputs


@torch.inference_mode()
def next_logits(model: Any, rows: Rows) -> torch.Tensor:
    """[K, V] float32 after the last row, by one full forward pass of the model class."""
    config = model.config
    out = model(**model_inputs(rows), use_cache=False).logits[0, -1]
    return out.float().view(config.num_codebooks, config.codebook_size)


class Oracle:
    def __init__(self, loaded: Loaded) -> None:
        self.model: Any = loaded.model
        self.processor: Any = loaded.processor

    def logits(self, rows: Rows) -> torch.Tensor:
        return next_logits(self.model, rows)

    @torch.inference_mode()
    def generate(self, rows: Rows, *, max_new_tokens: int, **settings: Any) -> NDArray[np.int16]:
        """Delayed rows [n, K] that `generate` adds to a prompt, the all-BOS row first; greedy and without
        repetition-aware sampling unless ``settings`` say otherwise."""
        config = self.model.generation_config
        before = config.ras_win_len, config.ras_win_max_num_repeat
        config.ras_win_len = settings.pop("ras_win_len", None)
        config.ras_win_max_num_repeat = settings.pop("ras_win_max_num_repeat", 2)
        try:
            out = self.model.generate(
                **model_inputs(rows), max_new_tokens=max_new_tokens, **{"do_sample": False, **settings}
            )
        finally:
            config.ras_win_len, config.ras_win_max_num_repeat = before
        return out[0, int(rows.audio.sum()) :].numpy().astype(np.int16)
