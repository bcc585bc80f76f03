"""A checkpoint between its two layouts: nothing is lost there and back, and what cannot pass is refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_voice.errors import CheckpointError
from higgs_voice.model.convert import ORIGINAL, TRANSFORMERS, convert, layout_of
from higgs_voice.model.loading import NANO, load

MODEL = NANO / "model"


def files(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.name != "conversion.json"}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "original"
    assert convert(MODEL, folder) == ORIGINAL
    return folder


def test_there_and_back_nothing_is_lost(original: Path, tmp_path: Path) -> None:
    assert layout_of(MODEL) == TRANSFORMERS
    assert layout_of(original) == ORIGINAL
    assert convert(original, tmp_path / "back") == TRANSFORMERS
    before, after = files(MODEL), files(tmp_path / "back")
    assert before.keys() == after.keys()
    for name in before:
        if not name.endswith(".safetensors"):
            assert after[name] == before[name], name
    assert same(tensors(MODEL), tensors(tmp_path / "back"))


def test_the_other_way_round_too(original: Path, tmp_path: Path) -> None:
    """From a checkpoint in the original layout that has never been in the other one."""
    bare = tmp_path / "bare"
    shutil.copytree(original, bare)
    (bare / "conversion.json").unlink()
    config = json.loads((bare / "config.json").read_text())
    config["something_of_theirs"] = {"kept": True}
    (bare / "config.json").write_text(json.dumps(config))
    convert(bare, tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "back")
    before, after = files(bare), files(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith(".safetensors"))
    assert same(tensors(bare), tensors(tmp_path / "back"))


def test_what_was_edited_between_is_not_undone(original: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(original, edited)
    config = json.loads((edited / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (edited / "config.json").write_text(json.dumps(config))
    convert(edited, tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["rms_norm_eps"] == 1e-3


def test_names_and_shapes_are_those_of_the_original(original: Path) -> None:
    found = tensors(original)
    config = json.loads((original / "config.json").read_text())
    assert config["model_type"] == "higgs_audio"
    assert config["audio_codebook_size"] == 256
    assert {name.split(".")[0] for name in found} == {
        "audio_codebook_embeddings",
        "audio_decoder_proj",
        "embed_tokens",
        "layers",
        "norm",
    }
    assert found["audio_decoder_proj.text_lm_head.weight"].shape == (112, 256)


def test_a_header_and_its_line_are_parted_for_the_original(original: Path) -> None:
    """The package looks a header and the text after it up apart; the ids must be those of both together."""
    theirs, ours = AutoTokenizer.from_pretrained(original), AutoTokenizer.from_pretrained(MODEL)
    header, line = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
        "Generate audio following instruction.",
    )
    scene = "\n\n<|scene_desc_start|>\na quiet room\n<|scene_desc_end|>"
    for text in (line, line + scene):
        apart = [part for piece in (header, text) for part in theirs.encode(piece, add_special_tokens=False)]
        assert apart == ours.encode(header + text, add_special_tokens=False)


def test_transformers_loads_what_comes_from_the_original(original: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(original, bare)
    (bare / "conversion.json").unlink()
    convert(bare, tmp_path / "model")
    shutil.copytree(NANO / "codec", tmp_path / "codec")
    ours, back = load("nano").model, load(str(tmp_path)).model
    assert same(ours.state_dict(), back.state_dict())
    for name in (
        "rope_parameters",
        "head_dim",
        "audio_token_id",
        "audio_bos_token_id",
        "audio_delay_token_id",
        "codebook_size",
    ):
        assert getattr(back.config, name) == getattr(ours.config, name), name


def test_a_sharded_checkpoint_in_half_precision_with_a_text_head(tmp_path: Path) -> None:
    config: Any = HiggsAudioV2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        codebook_size=1026,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "one", max_shard_size="200KB")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 1
    heard: list[str] = []
    convert(tmp_path / "one", tmp_path / "two", on_file=heard.append)
    convert(tmp_path / "two", tmp_path / "three")
    assert heard == sorted(item.name for item in (tmp_path / "one").glob("*.safetensors"))
    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "three"))
    index = json.loads((tmp_path / "two" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == tensors(tmp_path / "two").keys()
    rope = json.loads((tmp_path / "two" / "config.json").read_text())["text_config"]
    assert rope["rope_theta"] == 500000.0
    assert rope["rope_scaling"]["rope_type"] == "llama3"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"audio_dual_ffn_layers": [0]}, "not each of its 6 layers"),
        ({"skip_audio_tower": False}, "audio tower"),
        ({"use_audio_out_self_attention": True}, "use_audio_out_self_attention is True"),
        ({"model_type": "llama"}, "model_type 'llama'"),
    ],
)
def test_what_the_other_layout_cannot_hold_is_refused(
    original: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(original, bad)
    (bad / "conversion.json").unlink()
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=says):
        convert(bad, tmp_path / "out")


def test_refusals_name_the_place(original: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a checkpoint already"):
        convert(MODEL, original)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        convert(empty, tmp_path / "out")
    shutil.copyfile(MODEL / "config.json", empty / "config.json")
    with pytest.raises(CheckpointError, match="no weights"):
        convert(empty, tmp_path / "out")
    save_file({"model.norm.weight": torch.zeros(4), "foreign.weight": torch.zeros(1)}, empty / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no place for: foreign\.weight"):
        convert(empty, tmp_path / "out")
