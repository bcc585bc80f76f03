"""What the Pipecat service can be told: its runtime settings, and arguments that it refuses with a sentence."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TextAggregationMode
from pipecat.transcriptions.language import Language
from pipecat.utils.types import NOT_GIVEN, NotGiven

from ..config import Sampling, check_model, engine_kind
from ..conversation.presets import KnowsVoices, check_voice
from ..conversation.session import SessionSettings
from ..conversation.synthesizer import Synthesizer
from ..conversation.voice import Voice
from ..errors import SettingsError

SAMPLING = tuple(Sampling.model_fields)
_CONTEXTS = ("new", "keep")
_LANGUAGES = {item.value.lower(): item for item in Language}
_FIXED = {
    "push_text_frames": False,
    "push_start_frame": True,
    "push_stop_frames": True,
    "reuse_context_id_within_turn": True,
}
"""Arguments of `TTSService` on which this service stands."""
_ELSEWHERE = {
    "voice_id": "voice=...",
    "params": "settings=HiggsTTSService.Settings(...)",
    "speed": "session_settings=SessionSettings(speech_rate=...)",
    "url": 'model="ws://host:port"',
    "base_url": 'model="ws://host:port"',
    "api_key": 'model="ws://TOKEN@host:port"',
}
"""What the framework's other services call it, and how it is given here."""


def _not_given() -> Any:
    return NOT_GIVEN


@dataclass
class HiggsTTSSettings(TTSSettings):
    """What can be changed while the pipeline runs, by a ``TTSUpdateSettingsFrame``; from the next speech on.

    Parameters:
        voice: A `Voice`, a preset's name, the path of a saved one, or a description of the speaker such as "feminine;
            warm"; one word is a name. A name is looked for in the operator's folder, at the server, and among those that ship.
        language: For what is said for numbers, dates and units; None is that of the service's ``session_settings``.
        scene: Where it is recorded; of the voice.
        speakers: Descriptions of the speakers; of the voice.
        on_voice_change: Whether a new voice, scene or speaker begins a "new" context (the old one's sound would pull it
            back to the old voice) or goes on in the old one ("keep").
        temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens: See `Sampling`.
    """

    voice: Voice | str | NotGiven | None = field(default_factory=_not_given)  # pyright: ignore[reportIncompatibleVariableOverride]
    scene: str | NotGiven | None = field(default_factory=_not_given)
    speakers: tuple[str, ...] | list[str] | str | NotGiven | None = field(default_factory=_not_given)
    on_voice_change: Literal["new", "keep"] | NotGiven = field(default_factory=_not_given)
    temperature: float | NotGiven | None = field(default_factory=_not_given)
    top_k: int | NotGiven | None = field(default_factory=_not_given)
    top_p: float | NotGiven = field(default_factory=_not_given)
    ras_win_len: int | NotGiven | None = field(default_factory=_not_given)
    ras_win_max_num_repeat: int | NotGiven = field(default_factory=_not_given)
    seed: int | NotGiven | None = field(default_factory=_not_given)
    max_new_tokens: int | NotGiven = field(default_factory=_not_given)


def check_arguments(kwargs: dict[str, Any], service: type) -> dict[str, Any]:
    """The arguments that are left for the classes behind `service`, which ignore what none of them knows.

    `service` is the class that is made: what one derived from ours takes beside it is known too. Errors: `SettingsError`.
    """
    left = dict(kwargs)
    by_sentence = left.pop("aggregate_sentences", None)
    mode = left.pop("text_aggregation_mode", None)
    if by_sentence or mode not in (None, TextAggregationMode.TOKEN):
        raise SettingsError(
            "HiggsTTSService takes the LLM's tokens and cuts them itself: text_aggregation_mode can only be TOKEN; "
            "how it cuts is set by session_settings=SessionSettings(chunker=...)"
        )
    for name, value in _FIXED.items():
        if left.pop(name, value) != value:
            raise SettingsError(
                f"HiggsTTSService opens, fills and closes one audio context a turn: {name} can only be {value}"
            )
    known = _parameters(service)
    for name in left:
        if name not in known:
            raise SettingsError(_instead_of(name, known))
    return left


def _parameters(service: type) -> list[str]:
    """Every argument by name that the constructors of a class and of those behind it take, the nearest first."""
    found: dict[str, None] = {}
    for cls in service.__mro__:
        if "__init__" in vars(cls):
            given = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
            found.update(
                (item.name, None) for item in given if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
            )
    return [name for name in found if name not in (*_FIXED, "text_aggregation_mode", "aggregate_sentences")]


def _instead_of(name: str, known: list[str]) -> str:
    """A sentence: this is no argument, and what to write instead."""
    places = {item: f"session_settings=SessionSettings({item}=...)" for item in SessionSettings.model_fields}
    places |= {item.name: f"settings=HiggsTTSService.Settings({item.name}=...)" for item in fields(HiggsTTSSettings)}
    places |= {item: f"{item}=..." for item in known}
    if name in places:
        part = "settings" if places[name].startswith("settings") else "session's settings"
        return f"{name} goes into the {part}: {places[name]}"
    says = f"HiggsTTSService has no argument {name!r}"
    if name in _ELSEWHERE:
        return f"{says}; write {_ELSEWHERE[name]}"
    if close := get_close_matches(name, places, n=1, cutoff=0.7):
        return f"{says}; did you mean {places[close[0]]}?"
    return f"{says}; it has: {', '.join(known)}"


def check_settings(settings: HiggsTTSSettings) -> Sampling:
    """The sampling that complete settings ask for. Errors: `SettingsError`."""
    if settings.on_voice_change not in _CONTEXTS:
        raise SettingsError(f'on_voice_change must be "new" or "keep" (got {settings.on_voice_change!r})')
    return Sampling(**{name: getattr(settings, name) for name in SAMPLING})


def check_places(model: Any, voice: Any, engine: Synthesizer | None) -> None:
    """Refuse a model that is not there, and a voice's name or file that is not on this machine, unless a server may know it.

    Errors: `ModelNotFoundError`, `VoiceError`, `VoiceFileError`.
    """
    if engine is None:
        check_model(str(model))
    at_a_server = isinstance(engine, KnowsVoices) if engine is not None else engine_kind(str(model)) == "remote"
    if isinstance(voice, str) and not at_a_server:
        check_voice(voice)


def check_language(language: Language | str) -> Language:
    """A language by its tag, such as "de" or "en-GB". Errors: `SettingsError`."""
    known = _LANGUAGES.get(str(language).replace("_", "-").lower())
    if known is None:
        raise SettingsError(f'language must be a tag such as "en" or "de-AT" (got {language!r})')
    return known
