"""The language model's checkpoint between the two layouts it is published in: the original one, which `boson_multimodal`
reads (``model_type`` higgs_audio), and transformers' (higgs_audio_v2).

The tensors are the same under other names, so nothing is computed and nothing is lost: `convert` there and back gives the
files it began with. What one layout has no place for is kept beside the result in ``conversion.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError

ORIGINAL, TRANSFORMERS = "original", "transformers"
MODEL_TYPES = {"higgs_audio": ORIGINAL, "higgs_audio_v2": TRANSFORMERS}
RECORD = "conversion.json"
INDEX = "model.safetensors.index.json"
NANO_MODEL = Path(__file__).resolve().parent.parent / "nano" / "model"

# transformers' name, the original's. Every other tensor is called ``model.X`` in the one and ``X`` in the other.
_RENAMED = {
    "model.embed_audio_tokens.embed_audio_tokens.weight": "audio_codebook_embeddings.weight",
    "audio_lm_head.weight": "audio_decoder_proj.audio_lm_head.weight",
    "text_lm_head.weight": "audio_decoder_proj.text_lm_head.weight",
}
_TEXT_HEAD = "audio_decoder_proj.text_lm_head.weight"

# Fields of the backbone that have one name in transformers' flat configuration and in the original's ``text_config``.
_BACKBONE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
)
# Parts of the original's class that transformers' does not have, and the value that means "not in use".
_UNUSED: dict[str, Any] = {
    "audio_embed_avg": False,
    "audio_decoder_proj_num_layers": 0,
    "encode_whisper_embed": False,
    "use_audio_out_embed_projector": False,
    "use_audio_out_self_attention": False,
    "use_rq_transformer": False,
    "use_delay_pattern": True,
}
_DELAY_TOKEN = "<|reserved_special_token_6|>"
_PUBLISHED_DELAY_ID = 128014


def layout_of(folder: Path) -> str:
    """``original`` or ``transformers``. Errors: `CheckpointError`."""
    found = _read_json(folder / "config.json").get("model_type")
    if found not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder} is not a Higgs Audio v2 model: its config.json says model_type {found!r}, not one of "
            f"{', '.join(map(repr, MODEL_TYPES))}"
        )
    return MODEL_TYPES[found]


def convert(source: Path, target: Path, *, on_file: Callable[[str], None] | None = None) -> str:
    """Write the checkpoint in `source` to the folder `target` in the other layout; the name of that layout.

    `target` must not hold a checkpoint. `on_file` hears the name of every file of weights before it is written.
    Errors: `CheckpointError`.
    """
    layout = layout_of(source)
    other = TRANSFORMERS if layout == ORIGINAL else ORIGINAL
    if (target / "config.json").exists():
        raise CheckpointError(f"{target} holds a checkpoint already; name another folder")
    shards = _shards(source)
    names = {name for _, held in shards for name in held}
    _check_names(names, other, source)
    config = _read_json(source / "config.json")
    made = _to_transformers(config, source) if layout == ORIGINAL else _to_original(config)
    target.mkdir(parents=True, exist_ok=True)
    before = _read_json(source / RECORD) if (source / RECORD).is_file() else {}
    # The files of text. What the way here changed is put back as it was, if it is still what that way made of it.
    texts = {item.name: item for item in sorted(source.iterdir()) if item.is_file() and not _is_weights(item.name)}
    texts.pop(RECORD, None)
    was: dict[str, str | None] = {
        name: entry["was"]
        for name, entry in before.get("files", {}).items()
        if name in texts and _digest(texts[name]) == entry["sha256"]
    }
    record: dict[str, Any] = {"from": layout, "files": {}, "added_text_head": False}
    for name, item in texts.items():
        if name in was:
            if (text := was[name]) is not None:
                (target / name).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(item, target / name)
    if "config.json" not in was:
        _write_json(target / "config.json", made)
    if other == ORIGINAL:
        _fit_original(target, settled=was.keys())
    elif not before:
        _fit_transformers(target)
    for name in sorted({item.name for item in target.iterdir()} | texts.keys()):
        here, there = target / name, texts.get(name)
        if here.is_file() and (there is None or here.read_bytes() != there.read_bytes()):
            text = there.read_text(encoding="utf-8") if there is not None else None
            record["files"][name] = {"was": text, "sha256": _digest(here)}
    record["added_text_head"] = other == ORIGINAL and "text_lm_head.weight" not in names
    drop = {_TEXT_HEAD} if other == TRANSFORMERS and before.get("added_text_head") else set[str]()
    _write_weights(shards, source, target, other, drop, on_file, add_text_head=record["added_text_head"])
    _write_json(target / RECORD, record)
    return other


def _check_names(names: set[str], other: str, source: Path) -> None:
    for name in names:
        if other == ORIGINAL and not name.startswith("model.") and name not in _RENAMED:
            raise CheckpointError(f"{source} holds a weight that the original layout has no place for: {name}")
        if other == TRANSFORMERS and name.startswith(("audio_tower.", "audio_encoder_proj.")):
            raise CheckpointError(
                f"{source} holds an audio tower ({name}), which transformers' Higgs Audio v2 does not have"
            )


def _write_weights(
    shards: list[tuple[str, list[str]]],
    source: Path,
    target: Path,
    layout: str,
    drop: set[str],
    on_file: Callable[[str], None] | None,
    *,
    add_text_head: bool,
) -> None:
    """One file at a time, so that a model larger than the memory passes."""
    rename = _original_name if layout == ORIGINAL else _transformers_name
    weight_map: dict[str, str] = {}
    total = 0
    for place, (file, held) in enumerate(shards):
        if on_file is not None:
            on_file(file)
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(source / file, framework="pt") as weights:
            metadata = weights.metadata() or {}
            for name in held:
                if name not in drop:
                    tensors[rename(name)] = weights.get_tensor(name)
            if add_text_head and place == 0:
                # A head that was not kept: nothing that is spoken asks it, but the class wants one.
                config = _read_json(target / "config.json")["text_config"]
                dtype = weights.get_tensor(held[0]).dtype
                tensors[_TEXT_HEAD] = torch.zeros(config["vocab_size"], config["hidden_size"], dtype=dtype)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        save_file(tensors, target / file, metadata=metadata)
    if len(shards) > 1:
        _write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _original_name(name: str) -> str:
    return _RENAMED.get(name) or name.removeprefix("model.")


def _transformers_name(name: str) -> str:
    for ours, theirs in _RENAMED.items():
        if name == theirs:
            return ours
    return f"model.{name}"


def _to_transformers(config: dict[str, Any], source: Path) -> dict[str, Any]:
    text = dict(config.get("text_config") or {})
    layers = int(text.get("num_hidden_layers", 0))
    for key, unused in _UNUSED.items():
        if config.get(key, unused) != unused:
            raise CheckpointError(
                f"{source} cannot be put in transformers' layout: {key} is {config[key]!r} in its config.json"
            )
    if config.get("audio_adapter_type") not in ("dual_ffn", "dual_ffn_fast_forward") or sorted(
        config.get("audio_dual_ffn_layers") or []
    ) != list(range(layers)):
        raise CheckpointError(
            f"{source} cannot be put in transformers' layout: not each of its {layers} layers has an audio feed-forward"
        )
    if not config.get("skip_audio_tower", False):
        raise CheckpointError(f"{source} cannot be put in transformers' layout: it has an audio tower")
    special = _special_ids(source)
    books = int(config["audio_num_codebooks"])
    made: dict[str, Any] = {
        "architectures": ["HiggsAudioV2ForConditionalGeneration"],
        "model_type": "higgs_audio_v2",
        **{key: text[key] for key in _BACKBONE if key in text},
        "pad_token_id": config.get("pad_token_id", 128001),
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            **(text.get("rope_scaling") or {}),
            "rope_theta": text.get("rope_theta", 10000.0),
        },
        "num_codebooks": books,
        "codebook_size": int(config["audio_codebook_size"]) + 2,
        "audio_stream_bos_id": config.get("audio_stream_bos_id", 1024),
        "audio_stream_eos_id": config.get("audio_stream_eos_id", 1025),
        "audio_token_id": config.get("audio_out_token_idx", 128016),
        "audio_bos_token_id": special.get("<|audio_out_bos|>", config.get("audio_out_bos_token_id", 128013)),
        "audio_delay_token_id": special.get(_DELAY_TOKEN, _PUBLISHED_DELAY_ID),
    }
    made.setdefault("head_dim", int(text["hidden_size"]) // int(text["num_attention_heads"]))
    if dtype := config.get("torch_dtype"):
        made["dtype"] = dtype
    return made


def _to_original(config: dict[str, Any]) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or _PUBLISHED_ROPE)
    theta = rope.pop("rope_theta", 10000.0)
    text = {key: config[key] for key in _BACKBONE if key in config}
    text |= {
        "model_type": "llama",
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    made: dict[str, Any] = {
        "architectures": ["HiggsAudioModel"],
        "model_type": "higgs_audio",
        "text_config": text,
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(int(config["num_hidden_layers"]))),
        "audio_ffn_hidden_size": config["hidden_size"],
        "audio_ffn_intermediate_size": config["intermediate_size"],
        **_UNUSED,
        "encode_audio_in_tokens": True,
        "skip_audio_tower": True,
        "audio_num_codebooks": config["num_codebooks"],
        "audio_codebook_size": int(config["codebook_size"]) - 2,
        "audio_stream_bos_id": config["audio_stream_bos_id"],
        "audio_stream_eos_id": config["audio_stream_eos_id"],
        "audio_out_token_idx": config["audio_token_id"],
        "audio_out_bos_token_id": config["audio_bos_token_id"],
        "pad_token_id": config.get("pad_token_id", 128001),
    }
    if dtype := config.get("dtype"):
        made["torch_dtype"] = dtype
    return made


_PUBLISHED_ROPE: dict[str, Any] = {
    "factor": 32.0,
    "rope_theta": 500000.0,
    "high_freq_factor": 0.5,
    "low_freq_factor": 0.125,
    "original_max_position_embeddings": 1024,
    "rope_type": "llama3",
}


def _fit_transformers(target: Path) -> None:
    """Put beside the weights what transformers' processor reads."""
    for name in ("chat_template.jinja", "preprocessor_config.json"):
        if not (target / name).exists() and not (name.endswith("jinja") and _has_template(target)):
            shutil.copyfile(NANO_MODEL / name, target / name)


def _fit_original(target: Path, settled: Set[str]) -> None:
    """Make what stands beside the weights readable to the original's package; `settled` files are left alone."""
    special = _special_ids(target)
    if "config.json" not in settled:
        config = _read_json(target / "config.json")
        # What only the vocabulary says. A token that it lacks gets the id past its end, which no prompt holds.
        config["audio_eos_token_id"] = special.get("<|audio_eos|>", 128012)
        config["audio_in_token_idx"] = special.get("<|AUDIO|>", config["text_config"]["vocab_size"])
        _write_json(target / "config.json", config)
    if "tokenizer.json" not in settled:
        _part_headers(target / "tokenizer.json")
    tokenizer = target / "tokenizer_config.json"
    if tokenizer.is_file() and tokenizer.name not in settled:
        settings = _read_json(tokenizer)
        if settings.get("tokenizer_class") == "TokenizersBackend":  # the name that transformers 5 gives it
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            _write_json(tokenizer, settings)


def _part_headers(file: Path) -> None:
    """The original's code cuts a message's header off its text before it looks either up, so that a vocabulary with one token
    for a header and the line that usually follows it would never find that token. It becomes the header's alone, and the
    line, which it stands for, is left out of what follows."""
    if not file.is_file():
        return
    found = _read_json(file)
    tokens = found.get("added_tokens", [])
    vocabulary = found.get("model", {}).get("vocab")
    lines: list[str] = []

    def rename(token: dict[str, Any], content: str) -> None:
        if isinstance(vocabulary, dict) and token["content"] in vocabulary:
            vocabulary[content] = vocabulary.pop(token["content"])
        token["content"] = content

    for token in tokens:
        header, mark, line = str(token["content"]).rpartition("<|end_header_id|>\n\n")
        if mark and line:
            for other in tokens:  # one for the header with another line: ids stay where they are
                if other["content"] == header + mark:
                    rename(other, f"<|unused_{other['id']}|>")
            rename(token, header + mark)
            lines.append(line)
    if lines:
        steps = [{"type": "Replace", "pattern": {"String": line}, "content": ""} for line in lines]
        kept = [found["normalizer"]] if found.get("normalizer") else []
        found["normalizer"] = {"type": "Sequence", "normalizers": [*steps, *kept]}
        file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _has_template(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(_read_json(file).get("chat_template"))


def _special_ids(folder: Path) -> dict[str, int]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    return {str(item["content"]): int(item["id"]) for item in _read_json(file).get("added_tokens", [])}


def _shards(folder: Path) -> list[tuple[str, list[str]]]:
    """Files of weights and the names in each."""
    files = sorted(item.name for item in folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        files = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    if not files:
        raise CheckpointError(f"{folder} holds no weights: there is no *.safetensors in it")
    return [(file, list(_names(folder / file))) for file in files]


def _names(file: Path) -> Iterator[str]:
    try:
        with safe_open(file, framework="pt") as weights:
            yield from weights.keys()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".pth")) or name == INDEX


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return found


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


__all__ = ["ORIGINAL", "TRANSFORMERS", "convert", "layout_of"]
