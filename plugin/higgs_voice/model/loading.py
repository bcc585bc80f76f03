"""From a name to a model, its tokenizer and its codec.

A name is one of the registry's, a folder, or a hub id; whatever it is, the same class methods of transformers load it,
and nothing after the name's resolution knows which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    DacFeatureExtractor,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerConfig,
    HiggsAudioV2TokenizerModel,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from ..config import is_hub_id, no_model
from ..errors import CheckpointError, ModelNotFoundError, SettingsError
from .linear import pick_weight_dtype, quantize

NANO = Path(__file__).resolve().parent.parent / "nano"
DEFAULT_CODEC = "bosonai/higgs-audio-v2-tokenizer"
CODECS = {
    "bosonai/higgs-audio-v2-generation-3B-base": DEFAULT_CODEC,
    "bosonai/higgs-tts-2-3b-base": DEFAULT_CODEC,
    "eustlb/higgs-audio-v2-generation-3B-base": DEFAULT_CODEC,
}
"""Hub ids of models that are known to work, and of their codecs."""
MIN_POSITIONS = 8192
"""Contexts may be at least this long: the published checkpoint is served up to here, though its configuration says 2048."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model and its codec are: folders or hub ids."""

    name: str
    model: str
    codec: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model can take."""

    max_positions: int
    num_codebooks: int
    codebook_size: int
    """Codes are 0 … codebook_size - 1; BOS and EOS come on top."""
    sample_rate: int


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model ready to run."""

    name: str
    model: HiggsAudioV2ForConditionalGeneration
    tokenizer: Any
    """A transformers tokenizer backed by `tokenizers`."""
    processor: HiggsAudioV2Processor
    codec: HiggsAudioV2TokenizerModel
    """Its weights are always float32; on a GPU torch's default multiplies in TF32 where they convolve."""
    device: torch.device
    dtype: torch.dtype
    """Of the model's weights; of the keys and values too, unless another is asked for."""
    limits: Limits

    @property
    def temperature(self) -> float | None:
        """What the checkpoint's ``generation_config.json`` recommends; None where it recommends nothing."""
        return self.model.generation_config.temperature


def resolve(model: str, codec: str | None = None) -> Source:
    """Find out what a name means. Errors: `ModelNotFoundError`, `CheckpointError`."""
    folder = Path(model).expanduser()
    if model == "nano":
        found = Source(model, str(NANO / "model"), str(NANO / "codec"))
    elif model and folder.is_dir():
        found = _resolve_folder(model, folder)
    elif is_hub_id(model):
        found = Source(model, model, CODECS.get(model, DEFAULT_CODEC))
    else:
        raise no_model(model)
    if codec is None:
        return found
    if not Path(codec).expanduser().is_dir() and not is_hub_id(codec):
        raise ModelNotFoundError(
            f"there is no codec {codec!r}: give a folder with a codec in it, or a hub id such as {DEFAULT_CODEC!r}"
        )
    return Source(
        found.name, found.model, str(Path(codec).expanduser()) if Path(codec).expanduser().is_dir() else codec
    )


def _resolve_folder(name: str, folder: Path) -> Source:
    """A folder that holds ``model`` and ``codec``, or is a model's itself, with or without a ``codec`` in or beside it."""
    model = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    if not (model / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no checkpoint: neither {model / 'config.json'} nor a folder named model is there"
        )
    for codec in (folder / "codec", model.resolve().parent / "codec"):
        if (codec / "config.json").is_file():
            return Source(name, str(model), str(codec))
    return Source(name, str(model), DEFAULT_CODEC)


def load(
    model: str = "nano",
    *,
    codec: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    weight_dtype: str = "auto",
) -> Loaded:
    """Load a model with its tokenizer and codec.

    ``model``: ``nano``, a folder or a hub id; ``codec`` likewise, where it is not the model's usual one. ``device`` auto is
    the first GPU if there is one; ``dtype`` auto is float32 on a CPU and bfloat16 on a GPU. ``weight_dtype`` int8 keeps the
    layers' weights in eight bits; they are made on the CPU, so that a GPU need not hold the others first.
    Errors: `ModelNotFoundError`, `CheckpointError`, `SettingsError`.
    """
    quantized = pick_weight_dtype(weight_dtype) == "int8"
    source = resolve(model, codec)
    where, kind = pick_device(device), pick_dtype(dtype, pick_device(device))
    with quiet():
        _check_config(source.model, HiggsAudioV2Config.model_type, "a Higgs Audio v2 model")
        network = _load_weights(HiggsAudioV2ForConditionalGeneration, source.model, kind).eval()
        if quantized:
            quantize(network.model.layers)
        network = network.to(where)
        codec_found: Any = _load_codec(source.codec)  # the class hides what kind of method `to` is
        voice = codec_found.to(where)
        tokenizer = _guarded(source.model, lambda: _tokenizer(source.model))
        extractor = _feature_extractor(source.model, voice.config)
    return _assemble(source.name, network, voice, tokenizer, extractor, where, kind)


def load_codec(source: str) -> HiggsAudioV2TokenizerModel:
    """Load a codec alone, from a folder or a hub id, to the CPU and in float32. Errors: `ModelNotFoundError`, `CheckpointError`."""
    with quiet():
        return _load_codec(source)


def _load_codec(source: str) -> HiggsAudioV2TokenizerModel:
    _check_config(source, HiggsAudioV2TokenizerConfig.model_type, "a Higgs Audio v2 codec")
    return _load_weights(HiggsAudioV2TokenizerModel, source, torch.float32).eval()


def pick_device(device: str | torch.device) -> torch.device:
    """``auto`` to the first GPU if there is one. Errors: `SettingsError` for a device that torch does not know or have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"there is no device {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise SettingsError(
                f"torch sees no CUDA device here, so {device!r} cannot be used; use 'cpu', or see its driver"
            )
        if (found.index or 0) >= count:
            raise SettingsError(f"there is no {device!r}: torch sees {count} CUDA device(s), counted from 0")
        return torch.device("cuda", found.index or 0)  # a thread can be set on a device with a number only
    return found


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto``, a torch type or its name. Errors: `CheckpointError` for a name that is none."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(f"there is no number type {dtype!r} for a model; use 'auto', 'float32' or 'bfloat16'")
    return found


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars, no load reports: what went wrong becomes an exception."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _guarded(source: str, read: Callable[[], _T]) -> _T:
    """Run a read of a checkpoint; what libraries raise becomes one sentence."""
    try:
        return read()
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not Path(source).is_dir():
            raise ModelNotFoundError(
                f"{source!r} could not be read from the model hub ({first}); if this machine is offline, give a folder with "
                "the checkpoint in it, or use 'nano', which is embedded"
            ) from error
        raise CheckpointError(f"the checkpoint in {source} cannot be read: {first}") from error


def _check_config(source: str, model_type: str, what: str) -> None:
    config, _ = _guarded(source, lambda: PreTrainedConfig.get_config_dict(source))
    found = config.get("model_type")
    if found != model_type:
        raise CheckpointError(f"{source} is not {what}: its config.json says model_type {found!r}, not {model_type!r}")


def _load_weights(cls: Any, source: str, dtype: torch.dtype) -> Any:
    network, info = _guarded(source, lambda: cls.from_pretrained(source, dtype=dtype, output_loading_info=True))
    for key in ("missing_keys", "mismatched_keys"):
        if info.get(key):
            names = sorted(str(name) for name in info[key])
            raise CheckpointError(
                f"the checkpoint in {source} does not fit its config.json: {len(names)} weights are "
                f"{key.partition('_')[0]}, among them {names[0]}"
            )
    return network


def _tokenizer(source: str) -> Any:
    return AutoTokenizer.from_pretrained(source)


def _feature_extractor(source: str, config: Any) -> DacFeatureExtractor:
    try:
        return DacFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError):
        return DacFeatureExtractor(sampling_rate=config.sample_rate, hop_length=1)


def _assemble(
    name: str,
    model: HiggsAudioV2ForConditionalGeneration,
    codec: HiggsAudioV2TokenizerModel,
    tokenizer: Any,
    extractor: DacFeatureExtractor,
    device: torch.device,
    dtype: torch.dtype,
) -> Loaded:
    config: Any = model.config
    size = int(codec.config.codebook_size)
    books = int(
        codec.quantizer.num_quantizers
        if hasattr(codec.quantizer, "num_quantizers")
        else len(codec.quantizer.quantizers)
    )
    if books != config.num_codebooks or size != config.audio_stream_bos_id:
        raise CheckpointError(
            f"the model {name} and its codec do not fit: the model speaks {config.num_codebooks} codebooks of "
            f"{config.audio_stream_bos_id} codes, the codec has {books} of {size}"
        )
    temperature = model.generation_config.temperature
    if temperature is not None and not 0.0 <= temperature <= 5.0:
        raise CheckpointError(
            f"the model {name} recommends a temperature of {temperature} in its generation_config.json; it can be 0 to 5"
        )
    processor = HiggsAudioV2Processor(
        extractor,
        tokenizer,
        codec,
        chat_template=tokenizer.chat_template,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
    )
    limits = Limits(
        max_positions=max(config.max_position_embeddings, MIN_POSITIONS),
        num_codebooks=config.num_codebooks,
        codebook_size=size,
        sample_rate=int(codec.config.sample_rate),
    )
    return Loaded(name, model, tokenizer, processor, codec, device, dtype, limits)


# Stand-in for the published tokenizer: its ids for the tokens that prompts are built from.
_SPECIAL = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
    "<|audio_bos|>": 128011,
    "<|audio_eos|>": 128012,
    "<|audio_out_bos|>": 128013,
    "<|reserved_special_token_6|>": 128014,
    "<|AUDIO|>": 128015,
    "<|AUDIO_OUT|>": 128016,
    "<|scene_desc_start|>": 128017,
    "<|scene_desc_end|>": 128018,
}
_COMMON = (
    "the of and to in a is that for it as was with be by on not he this are or his from at which but have an had they you "
    "were their one all we can her has there been if more when will would who so no she other its may these what them than "
    "some him time into only do such my new about out also two any up first could our then most see me should after said "
    "your very between made many over did down where how people through just because good each those way like long make "
    "work well know need want give right think say help great back before much"
)


# The published codec's acoustic half: 24 kHz, 960 samples a frame, wide enough to cost what it costs.
_ACOUSTIC: dict[str, Any] = {
    "model_type": "dac",
    "encoder_hidden_size": 64,
    "downsampling_ratios": [8, 5, 4, 2, 3],
    "upsampling_ratios": [8, 5, 4, 2, 3],
    "decoder_hidden_size": 1024,
    "hidden_size": 256,
    "hop_length": 960,
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
}


def _codec_config() -> HiggsAudioV2TokenizerConfig:
    """The published codec's shapes: 25 frames a second, eight codebooks (2 kbit/s) of 1024 codes."""
    return HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2],
        acoustic_model_config=_ACOUSTIC,
        semantic_model_config={"model_type": "hubert"},
    )


def stand_in_tokenizer() -> Any:
    """A tokenizer with the published one's special ids and a small English vocabulary, for models with random weights.

    Common words are one token each and other text is cut into bytes, so a sentence takes somewhat more tokens than with
    the published vocabulary of 128,000.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [piece for word in _COMMON.split() for piece in (word, "Ġ" + word)]
    headers = ["system", "user", "assistant", "ĊĊ"]  # Ċ is how byte-level vocabularies write a newline
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(alphabet + words + headers))}
    backend = Tokenizer(models.BPE(vocab={**vocabulary, **_SPECIAL}, merges=[], ignore_merges=True))
    words_and_lines = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words_and_lines, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    with (NANO / "model" / "chat_template.jinja").open(encoding="utf-8") as template:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            pad_token="<|end_of_text|>",
            chat_template=template.read(),
        )


def random_model(
    shape: str = "3b",
    *,
    layers: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    weight_dtype: str = "auto",
    seed: int = 0,
) -> Loaded:
    """The published model's true shapes with random weights, made on the device: for timing, and for tests of shapes.

    ``layers`` None is all 28. Errors: `ModelNotFoundError` for a shape other than ``3b``.
    """
    if shape != "3b":
        raise ModelNotFoundError(f"there is no shape {shape!r} for a model with random weights; use '3b'")
    quantized = pick_weight_dtype(weight_dtype) == "int8"
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    settings: dict[str, Any] = {"codebook_size": 1026} | ({} if layers is None else {"num_hidden_layers": layers})
    config: Any = HiggsAudioV2Config(**settings)
    with no_init_weights():  # billions of numbers need not be drawn twice
        model = _random(HiggsAudioV2ForConditionalGeneration, config, where, kind, seed)
    generator = torch.Generator(where).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
            else:  # a norm
                parameter.fill_(1.0)
    if quantized:
        quantize(model.model.layers)
    voice = _codec_config()
    codec = _random(HiggsAudioV2TokenizerModel, voice, where, torch.float32, seed)
    extractor = DacFeatureExtractor(sampling_rate=codec.config.sample_rate, hop_length=1)
    return _assemble(f"random-{shape}", model, codec, stand_in_tokenizer(), extractor, where, kind)


def _random(cls: Any, config: Any, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """A network made on the device, with the class's own initialisation."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device), quiet():
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            return cls(config).eval()
        finally:
            torch.set_default_dtype(before)
