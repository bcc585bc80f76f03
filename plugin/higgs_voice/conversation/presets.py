"""Voices by name: an operator's folder of them, and a few that ship with the embedded voice.

A preset is a saved voice, NAME.voice, or a clip NAME.wav (flac, ogg, mp3) with what is said in it as NAME.txt. The folder is
read again for every question, so that voices may come and go while an engine serves. Its voices go before those that ship.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..audio import load_clip
from ..config import voices_folder
from ..errors import RefusedError, VoiceError, VoiceFileError
from .synthesizer import Synthesizer
from .voice import Reference, Voice

SAVED = ".voice"
CLIPS = (".wav", ".flac", ".ogg", ".mp3")
DEFAULT = "default"
"""Always there: the folder's own, or the model's choice."""
SHIPPED = Path(__file__).resolve().parent.parent / "nano" / "voices"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PATH = re.compile(r"[^\s;,]*[/\\][^\s;,]*|[^\s;,]+\.[A-Za-z]\w{0,9}|.+\.voice")
"""What is meant as a file, whether it is there or not."""


def check_name(name: str) -> str:
    """`name`, if a voice may be called so: no path can be written with it. Errors: `VoiceError`."""
    if NAME.fullmatch(name) is None:
        raise VoiceError(
            f"{name!r} cannot be the name of a voice: a name has 1 to 64 letters (a-z, A-Z), digits, - and _, "
            "and begins with a letter or a digit"
        )
    return name


@dataclass(frozen=True, slots=True)
class Preset:
    """A name and the file behind it."""

    name: str
    file: Path
    shipped: bool
    """It came with the package and cannot be removed."""

    @property
    def changed(self) -> tuple[int, int]:
        """Another value when the file has been written again. Errors: OSError."""
        found = self.file.stat()
        return found.st_mtime_ns, found.st_size

    def load(self) -> Voice:
        """The voice, under the preset's name. Errors: `VoiceFileError`, `ClipError`."""
        if self.file.suffix == SAVED:
            return replace(Voice.load(self.file), name=self.name)
        try:
            text = self.file.with_suffix(".txt").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise VoiceFileError(f"the transcript beside clip {self.file.name!r} cannot be read: {error}") from error
        if not text:
            raise VoiceFileError(f"the transcript beside clip {self.file.name!r} is empty; write what is said in it")
        return Voice.create(name=self.name, references=Reference(text=text, pcm=load_clip(self.file)))


class Presets:
    """The voices that may be named: those of `folder`, which need not exist, and those that ship."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def all(self) -> dict[str, Preset]:
        """By name, sorted; `default` only where a file stands behind it. Files whose stem is no name do not count."""
        found = {**_in(SHIPPED, shipped=True), **(_in(self.folder, shipped=False) if self.folder is not None else {})}
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """What may be asked for."""
        return sorted({DEFAULT, *self.all()})

    def get(self, name: str) -> Voice:
        """A voice by name. Errors: `VoiceError` for one that is not there, `VoiceFileError` and `ClipError` for a bad file."""
        found = self.all().get(name)
        if found is not None:
            return found.load()
        if name == DEFAULT:
            return Voice()
        raise self.unknown(name)

    def unknown(self, name: str) -> VoiceError:
        """The error for a name that is not there."""
        return VoiceError(f"there is no voice {name!r}; there are: {', '.join(self.names())}")

    def add(self, name: str, voice: Voice, *, replace_old: bool = False) -> Path:
        """Keep a voice under a name; whoever reads meanwhile finds the old file or the new one, and never half of one.

        Errors: `VoiceError` for a bad name and for one that is taken, OSError.
        """
        folder = self._folder()
        check_name(name)
        file = folder / (name + SAVED)
        old = _in(folder, shipped=False).get(name)
        if old is not None and not replace_old:
            raise VoiceError(
                f"there is a voice {name!r} already, in {old.file}; remove it first, or replace it (--force)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{name}.{secrets.token_hex(4)}"
        try:
            part.write_bytes(replace(voice, name=name).to_bytes())
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        return file

    def remove(self, name: str) -> list[Path]:
        """Forget a voice of the folder, with its clip and transcript; the files that went.

        Errors: `VoiceError` for one that is not there, OSError.
        """
        folder = self._folder()
        if name not in _in(folder, shipped=False):
            if name in self.all():
                raise VoiceError(
                    f"the voice {name!r} comes with the package and cannot be removed, only covered by your own"
                )
            raise self.unknown(name)
        clips = [folder / (name + suffix) for suffix in CLIPS]
        texts = [folder / f"{name}.txt"] if any(clip.is_file() for clip in clips) else []
        gone = [file for file in (folder / (name + SAVED), *clips, *texts) if file.is_file()]
        for file in gone:
            file.unlink()
        return gone

    def _folder(self) -> Path:
        if self.folder is None:
            raise VoiceError("no folder of voices is named; give one: --voices DIR")
        return self.folder


def _in(folder: Path, *, shipped: bool) -> dict[str, Preset]:
    try:
        files = sorted(file for file in folder.iterdir() if NAME.fullmatch(file.stem))
    except OSError:  # not there, or not for us to read: no voices
        return {}
    clips = [file for file in files if file.suffix in CLIPS and file.with_suffix(".txt").is_file()]
    saved = [file for file in files if file.suffix == SAVED]
    return {file.stem: Preset(file.stem, file, shipped) for file in (*clips, *saved)}


@runtime_checkable
class KnowsVoices(Protocol):
    """An engine that has voices of its own: a server with its operator's folder."""

    async def voice(self, name: str) -> Voice:
        """Errors: `RefusedError` for a name that it does not have, with those that it has; `RemoteError`."""
        ...


async def find_voice(said: str | Path, engine: Synthesizer | None = None, *, folder: Path | None = None) -> Voice:
    """What a person means by a voice.

    A file that `Voice.save` wrote (it has a slash or a suffix); the name of a preset (one word), looked for in the folder, at
    the engine where it is a server's, and among those that ship; or a description such as "feminine; warm".
    Errors: `VoiceError`, `VoiceFileError`, `ClipError`; `RemoteError` where a server had to be asked and is not there.
    """
    if isinstance(said, Path) or _PATH.fullmatch(said):
        return await asyncio.to_thread(Voice.load, said)
    if NAME.fullmatch(said) is None:
        return Voice.create(name=said, speakers=said)
    presets = Presets(folder if folder is not None else voices_folder())
    own = (await asyncio.to_thread(presets.all)).get(said)
    refusal = ""
    if isinstance(engine, KnowsVoices) and (own is None or own.shipped):
        try:
            return await engine.voice(said)
        except RefusedError as error:
            refusal = f"; {error}"
    try:
        return await asyncio.to_thread(presets.get, said)
    except VoiceFileError:
        raise
    except VoiceError as error:
        if own is not None:
            raise
        raise _one_word(error, refusal) from error


def _one_word(error: VoiceError, refusal: str = "") -> VoiceError:
    return VoiceError(f"{error}{refusal} (a description in one word goes into speakers)")


def check_voice(said: str, *, folder: Path | None = None) -> None:
    """Refuse what `find_voice` would not find on this machine, where no server is asked; a file is not read.

    Errors: `VoiceError`, `VoiceFileError`.
    """
    if _PATH.fullmatch(said):
        if not Path(said).exists():
            raise VoiceFileError(f"voice file {said!r} does not exist")
    elif NAME.fullmatch(said) is not None:
        presets = Presets(folder if folder is not None else voices_folder())
        if said not in presets.names():
            raise _one_word(presets.unknown(said))


__all__ = ["Preset", "Presets", "check_name", "check_voice", "find_voice"]
