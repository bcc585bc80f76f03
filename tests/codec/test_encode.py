"""Codes of a clip are those of transformers, at any length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DacFeatureExtractor, HiggsAudioV2TokenizerModel

from higgs_voice.codec import Decoder, Encoder
from higgs_voice.errors import ClipError

from .conftest import voice_like

HOP = 960


def transformers_encode(
    codec: HiggsAudioV2TokenizerModel, sound: NDArray[np.float32], **how: object
) -> NDArray[np.int64]:
    """As `HiggsAudioV2Processor` encodes a clip: its feature extractor, then the codec."""
    extractor = DacFeatureExtractor(feature_size=1, hop_length=HOP, sampling_rate=24000)
    inputs = extractor(sound, sampling_rate=24000, return_tensors="pt", **how)
    inputs.pop("padding_mask", None)
    with torch.no_grad():
        return codec.encode(**inputs).audio_codes[0].numpy()


@pytest.mark.parametrize("frames", [13, 25, 60])
def test_whole_frames_are_encoded_as_by_the_processor(
    encoder: Encoder, codec: HiggsAudioV2TokenizerModel, frames: int
) -> None:
    sound = voice_like(frames / 25)
    codes = encoder.encode(sound)
    assert codes.dtype == np.int16
    assert codes.shape == (8, frames)
    assert np.unique(codes).size > 20
    assert np.array_equal(codes, transformers_encode(codec, sound, padding=False))


@pytest.mark.parametrize("extra", [1, 119, 120, 480, 959])
def test_other_lengths_are_filled_up_to_whole_frames(
    encoder: Encoder, codec: HiggsAudioV2TokenizerModel, extra: int
) -> None:
    sound = voice_like(1.0, seed=1)[: 20 * HOP + extra]
    codes = encoder.encode(sound)
    assert codes.shape == (8, 21)
    assert np.array_equal(codes, transformers_encode(codec, sound, padding=True))


def test_a_clip_that_is_not_whole_frames_keeps_its_place_in_time(encoder: Encoder) -> None:
    """Away from the end its codes are those of the same clip with a little more: nothing is shifted by half a frame."""
    sound = voice_like(2.0, seed=2)
    even, odd = encoder.encode(sound[: 40 * HOP]), encoder.encode(sound[: 39 * HOP + 300])
    assert np.mean(even[0, :36] == odd[0, :36]) > 0.9


def test_thirty_seconds_and_half_a_second(random_codec: HiggsAudioV2TokenizerModel) -> None:
    encoder = Encoder(random_codec)
    assert encoder.encode(np.tile(voice_like(1.0), 30)).shape == (8, 750)
    assert encoder.encode(voice_like(0.5)).shape == (8, 13)


def test_the_same_clip_gives_the_same_codes(codec: HiggsAudioV2TokenizerModel, encoder: Encoder) -> None:
    sound = voice_like(1.0)
    codes = encoder.encode(sound)
    try:
        codec.train()  # dropout and time masks of a codec in training mode must not reach the codes
        again = Encoder(codec)
        torch.manual_seed(1)
        assert np.array_equal(again.encode(sound), codes)
    finally:
        codec.eval()
    assert np.array_equal(encoder.encode(sound.astype(np.float64)), codes)  # pyright: ignore[reportArgumentType]


def test_what_is_encoded_can_be_decoded(encoder: Encoder, decoder: Decoder) -> None:
    sound = voice_like(2.4)
    back = decoder.decode(encoder.encode(sound))
    assert back.shape == sound.shape

    def loudness(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.sqrt((samples.reshape(-1, HOP) ** 2).mean(axis=1))

    assert np.corrcoef(loudness(sound), loudness(back))[0, 1] > 0.7


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((2, 24000), np.float32), r"must be mono of shape \[n\], not \[2, 24000\]"),
        (np.zeros(0, np.float32), r"must last 0\.5 to 30 s, this one lasts 0\.00 s"),
        (np.zeros(11_999, np.float32), r"must last 0\.5 to 30 s"),
        (np.zeros(720_001, np.float32), r"must last 0\.5 to 30 s, this one lasts 30\.00 s"),
        (np.full(24_000, np.nan, np.float32), "not finite"),
    ],
)
def test_what_cannot_be_encoded_is_refused(encoder: Encoder, sound: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ClipError, match=message):
        encoder.encode(sound)
