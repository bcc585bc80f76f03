"""The operator's folder of voices. Requests name a voice; they never name a path."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..audio import load_clip
from ..conversation.voice import Reference, Voice
from ..errors import RefusedError, SettingsError, VoiceFileError

SAVED = ".voice"
CLIPS = (".wav", ".flac", ".ogg", ".mp3")


class Voices:
    """Names and what they stand for: files that `Voice.save` wrote, as NAME.voice, or a clip NAME.wav (flac, ogg, mp3) with
    what is said in it as NAME.txt. The folder is read again for every list, so that voices may be added while serving."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"the folder of voices {str(folder)!r} does not exist")
        self._folder = folder
        self._loaded: dict[str, tuple[float, Voice]] = {}

    def names(self) -> list[str]:
        return sorted({"default", *self._files()})

    async def get(self, name: str | None) -> Voice:
        """A voice by name. Errors: `RefusedError` for an unknown one, `VoiceFileError` and `ClipError` for a bad file."""
        file = self._files().get(name or "default")
        if file is None:
            if name in (None, "default"):
                return Voice()
            raise RefusedError(f"this server has no voice {name!r}; it has: {', '.join(self.names())}")
        changed = file.stat().st_mtime
        loaded = self._loaded.get(file.stem)
        if loaded is None or loaded[0] != changed:
            loaded = self._loaded[file.stem] = (changed, await asyncio.to_thread(_load, file))
        return loaded[1]

    def keep(self, name: str, voice: Voice) -> None:
        """Remember a voice's encoded clips."""
        if name in self._loaded:
            self._loaded[name] = (self._loaded[name][0], voice)

    def _files(self) -> dict[str, Path]:
        if self._folder is None:
            return {}
        files = sorted(self._folder.iterdir())
        clips = {file.stem: file for file in files if file.suffix in CLIPS and file.with_suffix(".txt").is_file()}
        return clips | {file.stem: file for file in files if file.suffix == SAVED}


def _load(file: Path) -> Voice:
    if file.suffix == SAVED:
        return Voice.load(file)
    try:
        text = file.with_suffix(".txt").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise VoiceFileError(f"the transcript beside clip {file.name!r} cannot be read: {error}") from error
    return Voice.create(name=file.stem, references=Reference(text=text, pcm=load_clip(file)))
