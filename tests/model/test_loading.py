from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HiggsAudioV2TokenizerModel

from higgs_voice.errors import CheckpointError, ModelNotFoundError, SettingsError
from higgs_voice.model import loading
from higgs_voice.model.loading import DEFAULT_CODEC, NANO, load, pick_device, resolve
from higgs_voice.model.prompt import PromptBuilder


def test_names_and_what_they_mean(tmp_path: Path) -> None:
    nano = resolve("nano")
    assert (nano.model, nano.codec) == (str(NANO / "model"), str(NANO / "codec"))
    hub = resolve("bosonai/higgs-audio-v2-generation-3B-base")
    assert (hub.model, hub.codec) == ("bosonai/higgs-audio-v2-generation-3B-base", DEFAULT_CODEC)
    assert resolve("someone/else").codec == DEFAULT_CODEC
    assert resolve("someone/else", "my/codec").codec == "my/codec"
    assert resolve(str(NANO)).model == nano.model
    beside = resolve(str(NANO / "model"))
    assert (beside.model, Path(beside.codec)) == (nano.model, NANO / "codec")
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "config.json").write_text("{}")
    assert resolve(str(lone)).codec == DEFAULT_CODEC


@pytest.mark.parametrize("name", ["nono", "", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_an_unknown_name_says_which_work(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'nano'.*folder.*hub id"):
        load(name)


def test_an_unknown_codec_says_which_work() -> None:
    with pytest.raises(ModelNotFoundError, match="codec"):
        load("nano", codec="nowhere")


def test_a_hub_id_without_a_network_says_so() -> None:
    with pytest.raises(ModelNotFoundError, match=r"offline.*folder"):
        load("bosonai/higgs-audio-v2-generation-3B-base")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_corrupt_checkpoint(copy: Path) -> None:
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(str(copy))


def test_a_missing_file(copy: Path) -> None:
    (copy / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(str(copy))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(str(copy.parent))


def test_a_checkpoint_of_another_kind(copy: Path) -> None:
    edit(copy / "model" / "config.json", model_type="llama")
    with pytest.raises(CheckpointError, match="'llama'"):
        load(str(copy))


def test_weights_that_are_not_there(copy: Path) -> None:
    edit(copy / "model" / "config.json", num_hidden_layers=7)
    with pytest.raises(CheckpointError, match="weights are missing"):
        load(str(copy))


def test_weights_of_another_size(copy: Path) -> None:
    edit(copy / "model" / "config.json", intermediate_size=512)
    with pytest.raises(CheckpointError):
        load(str(copy))


def test_a_broken_tokenizer(copy: Path) -> None:
    (copy / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(str(copy))


def test_a_codec_that_does_not_fit(nano: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano.codec.config, "codebook_size", 512)
    with pytest.raises(CheckpointError, match="do not fit"):
        loading._assemble("x", nano.model, nano.codec, nano.tokenizer, None, nano.device, nano.dtype)  # pyright: ignore


def test_what_is_loaded(nano: Any) -> None:
    assert not nano.model.training
    assert nano.dtype == nano.model.dtype == torch.float32
    assert nano.codec.dtype == torch.float32
    assert nano.limits.max_positions >= 8192
    assert nano.processor.tokenizer is nano.tokenizer


def test_an_unknown_number_type() -> None:
    with pytest.raises(CheckpointError, match="float33"):
        load("nano", dtype="float33")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="there is no device 'nonsense'; use 'auto', 'cpu', 'cuda'"):
        load("nano", device="nonsense")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match="torch sees no CUDA device here, so 'cuda' cannot be used"):
        load("nano", device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SettingsError, match="there is no 'cuda:2': torch sees 2 CUDA"):
        pick_device("cuda:2")


def test_a_temperature_that_cannot_be_is_the_checkpoints_error(tmp_path: Path) -> None:
    shutil.copytree(loading.NANO, tmp_path / "nano")
    settings = tmp_path / "nano" / "model" / "generation_config.json"
    settings.write_text(settings.read_text().replace('"temperature": 0.2', '"temperature": 9.0'))
    with pytest.raises(
        CheckpointError, match=r"recommends a temperature of 9.0 in its generation_config.json; it can be 0 to 5"
    ):
        load(str(tmp_path / "nano"), device="cpu")


def test_the_stand_in_tokenizer_has_the_published_ids() -> None:
    tokenizer = loading.stand_in_tokenizer()
    ids = tokenizer.encode("<|audio_out_bos|><|AUDIO_OUT|><|reserved_special_token_6|><|audio_eos|><|eot_id|>")
    assert ids == [128013, 128016, 128014, 128012, 128009]
    assert tokenizer.decode(tokenizer.encode("What would you like? Über.")) == "What would you like? Über."
    assert len(tokenizer.encode("so they would make it work")) == 6
    config = type("Config", (), {"num_codebooks": 8, "audio_stream_bos_id": 1024, "audio_stream_eos_id": 1025})
    config.audio_token_id, config.audio_delay_token_id = 128016, 128014
    assert len(PromptBuilder(tokenizer, config).opening("the")) == 11


def test_only_true_shapes() -> None:
    with pytest.raises(ModelNotFoundError, match="3b"):
        loading.random_model("7b")


def test_the_random_models_codec_has_the_published_shapes() -> None:
    with torch.device("meta"):
        codec = HiggsAudioV2TokenizerModel(loading._codec_config())
    assert codec.quantizer.num_quantizers == 8
    assert (codec.config.hop_length, codec.config.frame_rate, codec.config.codebook_size) == (960, 25, 1024)
