"""One nano, loaded once, for all tests of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_voice.model.loading import Loaded, load
from higgs_voice.model.runner import Runner
from tests.model.oracle import Oracle


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nano() -> Loaded:
    return load("nano", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def runner(nano: Loaded) -> Runner:
    return Runner(nano)


@pytest.fixture(scope="session")
def oracle(nano: Loaded) -> Oracle:
    return Oracle(nano)


@pytest.fixture(scope="session")
def tiny() -> HiggsAudioV2ForConditionalGeneration:
    """The published configuration (24 heads on 8, llama3 rotary scaling, head size) with small widths, random weights."""
    config = HiggsAudioV2Config(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=3,
        codebook_size=66,
        audio_stream_bos_id=64,
        audio_stream_eos_id=65,
        audio_bos_token_id=250,
        audio_delay_token_id=251,
        audio_token_id=252,
        eos_token_id=253,
        pad_token_id=254,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = HiggsAudioV2ForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Norms that differ from 1 and projections large enough for attention to be far from uniform.
                parameter.normal_(1.0, 0.2) if "norm" in name else parameter.normal_(0.0, 0.12)
    return model


@pytest.fixture
def codes() -> Any:
    """Random codes [8, frames] that nano knows."""

    def make(frames: int, seed: int = 0) -> NDArray[np.int16]:
        return np.random.default_rng(seed).integers(0, 256, size=(8, frames)).astype(np.int16)

    return make
