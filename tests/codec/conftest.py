"""The embedded voice's codec, one with random weights, and something to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import HiggsAudioV2TokenizerModel

import higgs_voice
from higgs_voice.codec import Decoder, Encoder

NANO = Path(higgs_voice.__file__).parent / "nano" / "codec"


@pytest.fixture(scope="session")
def codec() -> HiggsAudioV2TokenizerModel:
    return HiggsAudioV2TokenizerModel.from_pretrained(NANO, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def random_codec(codec: HiggsAudioV2TokenizerModel) -> HiggsAudioV2TokenizerModel:
    """The same layout with random weights: no code predicts the next one, nothing is smooth."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = HiggsAudioV2TokenizerModel(codec.config).eval()
        with torch.no_grad():
            for quantizer in model.quantizer.quantizers:
                quantizer.codebook.embed.normal_()
    return model


@pytest.fixture(scope="session")
def tiny_codec(random_codec: HiggsAudioV2TokenizerModel) -> HiggsAudioV2TokenizerModel:
    """The same layers with 16 channels: fast enough to try many ways of cutting."""
    config = random_codec.config.__class__(**random_codec.config.to_dict())
    config.acoustic_model_config.decoder_hidden_size = 32
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = HiggsAudioV2TokenizerModel(config).eval()
    with torch.no_grad():
        for quantizer in model.quantizer.quantizers:
            quantizer.codebook.embed.normal_()
        for weight in model.acoustic_decoder.parameters():
            if weight.ndim == 3 and weight.shape[0] != 1:
                weight.mul_(3.0)  # loud enough that an error shows
    return model


@pytest.fixture(scope="session")
def decoder(codec: HiggsAudioV2TokenizerModel) -> Decoder:
    return Decoder(codec)


@pytest.fixture(scope="session")
def encoder(codec: HiggsAudioV2TokenizerModel) -> Encoder:
    return Encoder(codec)


def voice_like(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Sound shaped like speech: a gliding pitch with harmonics under formants, syllables, a little noise. 24 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 24000)) / 24000
    pitch = 120 * 2 ** (0.2 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / 24000
    formant = 500 + 300 * np.sin(2 * np.pi * 1.3 * t + rng.uniform(0, 6))
    sound = np.zeros_like(t)
    for harmonic in range(1, 30):
        sound += np.exp(-(((harmonic * pitch - formant) / 350) ** 2)) * np.sin(harmonic * phase)
        sound += 0.3 * np.exp(-(((harmonic * pitch - 2400) / 400) ** 2)) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t + rng.uniform(0, 6)) + 0.4, 0, None)
    return (0.12 * syllables * sound + 0.003 * rng.standard_normal(t.size)).astype(np.float32)


@pytest.fixture(scope="session")
def speech(encoder: Encoder) -> list[NDArray[np.int16]]:
    """Codes [K, 60] of three utterances."""
    return [encoder.encode(voice_like(2.4, seed)) for seed in range(3)]
