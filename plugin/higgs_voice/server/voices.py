"""The server's voices: presets, with their clips encoded once. Requests name a voice; they never name a path."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..conversation.presets import DEFAULT, Presets
from ..conversation.synthesizer import Synthesizer
from ..conversation.voice import Voice
from ..errors import RefusedError, SettingsError, VoiceFileError


class Voices:
    """What requests may name: the operator's folder, which is read again for every question, and what ships."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"the folder of voices {str(folder)!r} does not exist")
        self._presets = Presets(folder)
        self._loaded: dict[str, tuple[tuple[int, int], Voice]] = {}

    def names(self) -> list[str]:
        return self._presets.names()

    async def get(self, name: str | None) -> Voice:
        """A voice by name. Errors: `RefusedError` for an unknown one, `VoiceFileError` and `ClipError` for a bad file."""
        name = name or DEFAULT
        found = self._presets.all().get(name)
        if found is None:
            self._loaded.pop(name, None)
            if name == DEFAULT:
                return Voice()
            raise RefusedError(f"this server has no voice {name!r}; it has: {', '.join(self.names())}")
        try:
            changed = found.changed
        except OSError as error:
            raise VoiceFileError(f"the file of voice {name!r} cannot be read: {error.strerror or error}") from error
        loaded = self._loaded.get(name)
        if loaded is None or loaded[0] != changed:
            loaded = self._loaded[name] = (changed, await asyncio.to_thread(found.load))
        return loaded[1]

    async def resolved(self, name: str | None, engine: Synthesizer) -> Voice:
        """The same with codes of the engine's codec for every clip. Errors: also `VoiceError`, `EngineError`."""
        voice = await self.get(name)
        resolved = await voice.resolve(engine)
        self.keep(voice, resolved)
        return resolved

    def keep(self, voice: Voice, resolved: Voice) -> None:
        """Remember the encoded clips of what `get` gave, unless its file has changed since."""
        known = self._loaded.get(voice.name)
        if known is not None and known[1] is voice:
            self._loaded[voice.name] = (known[0], resolved)
