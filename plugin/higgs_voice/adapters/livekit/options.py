"""What a TTS was asked for: the voice and the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from ...config import engine_kind
from ...conversation.presets import find_voice
from ...conversation.session import SessionSettings
from ...conversation.synthesizer import Synthesizer
from ...conversation.voice import Voice
from ...text import Lexicon


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `TTS`; never changed, only replaced."""

    model: str
    engine: Synthesizer | None
    voice: Voice | str | Path | None
    scene: str | None
    speakers: tuple[str, ...] | None
    settings: SessionSettings
    lexicon: Lexicon | None
    run_ahead_s: float

    def key(self) -> Hashable:
        """Equal for two TTS objects that mean the same voice on the same engine."""
        voice = self.voice
        if isinstance(voice, Voice):
            sounds = tuple((item.text, hashlib.sha256(item.pcm.tobytes()).digest()) for item in voice.references)
            said: Hashable = (voice.name, voice.scene, voice.speakers, voice.system, sounds)
        else:
            said = str(voice) if voice is not None else None
        return (self.model if self.engine is None else id(self.engine), said, self.scene, self.speakers)


async def voice_of(options: Options, engine: Synthesizer) -> Voice:
    """The voice that the options mean: a `Voice`, or what `find_voice` takes. Errors: `VoiceError`, `RemoteError`."""
    voice = options.voice or Voice()
    if not isinstance(voice, Voice):
        voice = await find_voice(voice, engine)
    if options.scene is not None:
        voice = replace(voice, scene=options.scene.strip() or None)
    if options.speakers is not None:
        voice = replace(voice, speakers=Voice.create(speakers=options.speakers).speakers)
    return voice


def several(speakers: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...] | None:
    if speakers is None:
        return None
    return (speakers,) if isinstance(speakers, str) else tuple(speakers)


def servers_of(model: str) -> list[SplitResult]:
    """The servers that a model's name names; none if it is no server."""
    if engine_kind(model) != "remote":
        return []
    return [urlsplit(part.strip()) for part in model.split(",")]


def with_token(model: str, token: str | None) -> str:
    if token is None or not (servers := servers_of(model)):
        return model
    named = (item._replace(netloc=f"{quote(token, safe='')}@{item.netloc}") for item in servers)
    return ",".join(urlunsplit(item) for item in named)


def without_token(model: str) -> str:
    servers = (item._replace(netloc=item.netloc.rpartition("@")[2]) for item in servers_of(model))
    return ",".join(urlunsplit(item) for item in servers) or model
