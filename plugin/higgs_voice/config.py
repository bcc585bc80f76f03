"""Frozen settings, validated once. An unknown key is an error that names the valid ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ModelNotFoundError, SettingsError


class Settings(BaseModel):
    """Base of all settings: frozen, strict about keys, errors are `SettingsError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_sentence(type(self), error)) from error

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some values changed."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def _sentence(cls: type[BaseModel], error: ValidationError) -> str:
    parts: list[str] = []
    for item in error.errors():
        where, says = ".".join(str(part) for part in item["loc"]), item["msg"].removeprefix("Value error, ")
        field = cls.model_fields.get(str(item["loc"][0])) if item["loc"] else None
        if item["type"] == "extra_forbidden":
            parts.append(f"{cls.__name__} has no setting {where!r}; it has: {', '.join(cls.model_fields)}")
        elif not where:  # of several settings together
            parts.append(f"{cls.__name__}: {says}")
        elif field is not None and not field.repr:  # a secret
            parts.append(f"{cls.__name__}.{where}: {says}")
        else:
            parts.append(f"{cls.__name__}.{where}: {says} (got {item['input']!r})")
    return "; ".join(parts)


DOCUMENTED_TEMPERATURE = 0.7
MAX_RAS_WINDOW = 256
"""Rows that repetition-aware sampling may look back at: ten seconds. What an engine keeps of every stream grows with them."""


class Sampling(Settings):
    """How codes are drawn from the model's logits. Defaults are those of the documented API."""

    temperature: float | None = Field(default=None, ge=0.0, le=5.0)
    """0 is greedy. None is what the checkpoint's ``generation_config.json`` recommends, as the embedded voice's does; where it
    recommends nothing, 0.7."""
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=0.95, ge=1e-6, le=1.0)
    ras_win_len: int | None = Field(default=7, ge=1, le=MAX_RAS_WINDOW)
    """Repetition-aware sampling: rows looked back at; None turns it off."""
    ras_win_max_num_repeat: int = Field(default=2, ge=1)
    seed: int | None = Field(default=None, ge=0)
    """None draws a new one for every chunk."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Rows (delayed frames) a chunk may take at most."""

    @property
    def drawn_at(self) -> float:
        """The temperature, of a checkpoint that recommends none."""
        return DOCUMENTED_TEMPERATURE if self.temperature is None else self.temperature

    def recommended(self, temperature: float | None) -> Self:
        """These settings for a checkpoint that recommends a temperature."""
        if self.temperature is not None or temperature is None:
            return self
        return self.replace(temperature=temperature)

    def again(self) -> Self:
        """For another try where these gave no sound: drawn no colder than the documented API draws, since near greedy another seed
        gives the same again."""
        return self.replace(temperature=max(self.drawn_at, DOCUMENTED_TEMPERATURE))


class Window(Settings):
    """Which exchanges stay in the context. Give ``last_n`` (an int, or None for all) or seconds ``low`` and ``high``."""

    kind: str = Field(default="seconds", pattern="^(seconds|last_n)$")
    n: int | None = Field(default=5, ge=0)
    """For ``last_n``: exactly the last n exchanges; None keeps all."""
    low: float = Field(default=20.0, gt=0.0)
    """For ``seconds``: what is left after a cut, in seconds of audio."""
    high: float = Field(default=40.0, gt=0.0)
    """For ``seconds``: what it grows to before it is cut, between turns."""
    pin_first: bool = True
    """Keep the first good exchange for ever, in a session whose voice has no reference clip."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.kind == "seconds" and self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        return self

    @classmethod
    def last_n(cls, n: int | None, *, pin_first: bool = False) -> Window:
        """The documented policy (`generation_chunk_buffer_size`); it pins nothing unless asked."""
        return cls(kind="last_n", n=n, pin_first=pin_first)

    @classmethod
    def seconds(cls, low: float = 20.0, high: float = 40.0, *, pin_first: bool = True) -> Window:
        """The sessions' default."""
        return cls(kind="seconds", low=low, high=high, pin_first=pin_first)


class Pauses(Settings):
    """How long it is silent between two chunks of one speech, by the mark between them, in seconds at rate 1."""

    none_s: float = Field(default=0.06, ge=0.0, le=2.0)
    """No mark: a sentence that was cut because it is long."""
    comma_s: float = Field(default=0.18, ge=0.0, le=2.0)
    clause_s: float = Field(default=0.28, ge=0.0, le=2.0)
    """Semicolon, colon, dash."""
    stop_s: float = Field(default=0.42, ge=0.0, le=3.0)
    """Full stop, question, exclamation."""
    paragraph_s: float = Field(default=0.75, ge=0.0, le=5.0)
    tolerance: float = Field(default=0.25, ge=0.0, lt=1.0)
    """What the voice made itself is left as it is within this share of the length; what is not is brought to the nearer end."""
    quiet_db: float = Field(default=-48.0, ge=-90.0, le=-20.0)
    """Mean level of 5 ms below which it is silent, against full scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.none_s <= self.comma_s <= self.clause_s <= self.stop_s <= self.paragraph_s:
            raise ValueError("none_s, comma_s, clause_s, stop_s and paragraph_s must not fall from one to the next")
        return self


def voices_folder() -> Path:
    """The operator's folder of voices: ``HIGGS_VOICE_VOICES``, else ``voices`` in the program's own configuration folder
    (``~/.config/higgs-voice`` on Linux, ``~/Library/Application Support/higgs-voice`` on macOS). It need not exist."""
    said = os.environ.get("HIGGS_VOICE_VOICES")
    if said:
        return Path(said).expanduser()
    from typer import get_app_dir

    return Path(get_app_dir("higgs-voice")) / "voices"


def cache_folder() -> Path:
    """What can be made again: ``$XDG_CACHE_HOME/higgs-voice``, ``~/.cache/higgs-voice`` unless set. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "higgs-voice"


def boson_python() -> str | None:
    """``HIGGS_VOICE_BOSON_PYTHON``: the interpreter of the environment with boson_multimodal in it, if it is named."""
    return os.environ.get("HIGGS_VOICE_BOSON_PYTHON") or None


def engine_kind(model: str) -> Literal["fake", "remote", "boson", "local"]:
    """Which engine a name means; whether there is such a model is not looked at."""
    if model == "fake":
        return "fake"
    if model.startswith(("ws://", "wss://")):
        return "remote"
    return "boson" if model.startswith("boson:") else "local"


def is_hub_id(name: str) -> bool:
    """Whether it is written as one: owner/model."""
    owner, _, rest = name.partition("/")
    return bool(owner) and bool(rest) and "/" not in rest and not name.startswith((".", "~")) and "\\" not in name


def no_model(name: str) -> ModelNotFoundError:
    """The error for a model that is not there."""
    return ModelNotFoundError(
        f"there is no model {name!r}: give 'nano' (the embedded voice), a folder with a checkpoint in it, or a hub id "
        "such as 'bosonai/higgs-audio-v2-generation-3B-base'"
    )


def check_model(name: str) -> None:
    """Refuse what can be seen from here to be no model; nothing is loaded and nobody asked. Errors: `ModelNotFoundError`."""
    if engine_kind(name) != "local" or name == "nano" or is_hub_id(name):
        return
    if not name or not Path(name).expanduser().is_dir():
        raise no_model(name)
