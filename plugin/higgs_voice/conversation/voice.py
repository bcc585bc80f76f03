"""Who speaks: a scene, descriptions of the speakers, and reference clips. A voice is saved state."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..audio import FRAME_RATE, SAMPLE_RATE, clip_from_array, load_clip, to_int16
from ..config import voices_folder
from ..errors import VoiceError, VoiceFileError
from .synthesizer import Codes, Exchange, Synthesizer, VoicePrompt

SYSTEM = "Generate audio following instruction."
SCENE_START = "<|scene_desc_start|>"
SCENE_END = "<|scene_desc_end|>"
FORMAT = "higgs-voice/voice/1"
MAX_FILE = 64 * 2**20
"""Bytes of a saved voice, packed and unpacked: 30 s of clip are 1.4 MB."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every member's date: the same voice is the same file."""


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=8192)]
    codec: Annotated[str, Field(max_length=256)] = ""


class _Meta(BaseModel):
    """``voice.json`` of a saved voice."""

    model_config = ConfigDict(extra="forbid")

    format: str
    name: Annotated[str, Field(max_length=256)]
    scene: Annotated[str, Field(max_length=8192)] | None = None
    speakers: Annotated[tuple[Annotated[str, Field(max_length=8192)], ...], Field(max_length=64)] = ()
    system: Annotated[str, Field(max_length=8192)] | None = None
    references: Annotated[tuple[_Said, ...], Field(max_length=64)] = ()
    references_in_scene: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A clip to clone, with what is said in it."""

    text: str
    pcm: NDArray[np.float32]
    """float32 mono at 24 kHz, [n]. May be empty where there are codes: such a clip speaks through their codec only."""
    codes: Codes | None = None
    """[K, T], once an engine has encoded the clip."""
    codec: str = ""
    """Fingerprint of the codec that made `codes`; another codec encodes the clip again."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        if len(self.pcm) or self.codes is None:
            return len(self.pcm) / SAMPLE_RATE
        return self.codes.shape[1] / FRAME_RATE

    @classmethod
    def from_file(cls, path: str | Path | bytes, text: str) -> Reference:
        """Read a clip. Errors: `ClipError`."""
        return cls(text=text, pcm=load_clip(path))

    @classmethod
    def from_array(cls, samples: NDArray[np.floating], sample_rate: int, text: str) -> Reference:
        """Take samples [n] or [n, channels]. Errors: `ClipError`."""
        return cls(text=text, pcm=clip_from_array(samples, sample_rate))


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """Everything that says who speaks and where. Frozen: a change makes another voice (`dataclasses.replace`)."""

    name: str = "default"
    scene: str | None = None
    """Where it is recorded, such as "Audio is recorded from a quiet room."."""
    speakers: tuple[str, ...] = ()
    """Descriptions. One that does not begin with ``SPEAKER<n>:`` gets its place in the tuple as its number, after the clips in
    the scene."""
    references: tuple[Reference, ...] = ()
    system: str | None = field(default=SYSTEM)
    references_in_scene: bool = False
    """Where the clips stand: as the first exchanges of the conversation, or (True) in the scene block as what describes SPEAKER0,
    SPEAKER1, …, without their transcripts. The model has learned both; without a system message it is always the first."""

    @classmethod
    def create(
        cls,
        *,
        name: str = "default",
        scene: str | None = None,
        speakers: str | list[str] | tuple[str, ...] | None = None,
        references: Reference | list[Reference] | tuple[Reference, ...] | None = None,
        references_in_scene: bool = False,
    ) -> Voice:
        """A voice from what people write: one description or several, one clip or several."""
        if isinstance(speakers, str):
            speakers = (speakers,)
        if isinstance(references, Reference):
            references = (references,)
        return cls(
            name=name,
            scene=(scene or "").strip() or None,
            speakers=tuple(text.strip() for text in speakers or () if text.strip()),
            references=tuple(references or ()),
            references_in_scene=references_in_scene,
        )

    @property
    def speaker_lines(self) -> tuple[str, ...]:
        """Complete lines of the scene block."""
        first = len(self.references) if self.references_in_scene else 0
        return tuple(
            text if _names_speaker(text) else f"SPEAKER{place}: {text}"
            for place, text in enumerate(self.speakers, start=first)
        )

    async def prompt(self, engine: Synthesizer) -> VoicePrompt:
        """The voice as `engine` takes it; clips that have no codes of its codec are encoded. Errors: `VoiceError`."""
        return (await self.resolve(engine))._prompt()

    async def resolve(self, engine: Synthesizer) -> Voice:
        """The same voice with codes of `engine`'s codec for every clip."""
        fingerprint = engine.info.codec_fingerprint
        references: list[Reference] = []
        for reference in self.references:
            if reference.codes is None or reference.codec != fingerprint:
                if not len(reference.pcm):
                    raise VoiceError(
                        f"a clip of voice {self.name!r} is kept as codes of another codec than this engine's, without its "
                        "sound; make the voice again from the clip"
                    )
                seconds = reference.seconds
                if seconds > engine.info.max_clip_s:
                    raise VoiceError(
                        f"the reference clip of voice {self.name!r} is {seconds:.0f} s long; "
                        f"this engine takes {engine.info.max_clip_s:.0f} s"
                    )
                reference = replace(reference, codes=await engine.encode(reference.pcm), codec=fingerprint)
            references.append(reference)
        return replace(self, references=tuple(references))

    def _prompt(self) -> VoicePrompt:
        several = len(self.references) > 1 and not self.references_in_scene
        exchanges: list[Exchange] = []
        for place, reference in enumerate(self.references):
            if reference.codes is None:
                raise VoiceError(f"voice {self.name!r} has a clip that no engine has encoded; call resolve() first")
            text = f"[SPEAKER{place}] {reference.text}" if several else reference.text
            exchanges.append(Exchange(text=text, codes=reference.codes))
        return VoicePrompt(
            system=self.system,
            scene=self.scene,
            speakers=self.speaker_lines,
            references=tuple(exchanges),
            references_in_scene=self.references_in_scene and self.system is not None,
        )

    def without_sound(self) -> Voice:
        """The same voice with its clips as codes alone, which is all that an engine of their codec needs."""
        silent = np.zeros(0, dtype=np.float32)
        return replace(
            self,
            references=tuple(replace(item, pcm=silent) if item.codes is not None else item for item in self.references),
        )

    def to_bytes(self) -> bytes:
        """The contents of a saved voice: a zip of JSON and npy arrays, nothing that could run code."""
        meta = _Meta(
            format=FORMAT,
            name=self.name,
            scene=self.scene,
            speakers=self.speakers,
            system=self.system,
            references=tuple(
                _Said(text=item.text, codec=item.codec if item.codes is not None else "") for item in self.references
            ),
            references_in_scene=self.references_in_scene,
        )
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:

            def put(name: str, data: bytes) -> None:
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)

            put("voice.json", json.dumps(meta.model_dump(mode="json"), indent=1, ensure_ascii=False).encode())
            for place, reference in enumerate(self.references):
                if len(reference.pcm) or reference.codes is None:
                    put(f"pcm{place}.npy", _npy(to_int16(reference.pcm)))
                if reference.codes is not None:
                    put(f"codes{place}.npy", _npy(reference.codes.astype(np.int16)))
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Write one file (`to_bytes`). Errors: OSError."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "a saved voice") -> Voice:
        """Read what `to_bytes` gave. Errors: `VoiceFileError`, which calls it `source`."""
        if len(data) > MAX_FILE:
            raise VoiceFileError(f"{source} has {len(data)} bytes; at most {MAX_FILE} are read")
        try:
            with zipfile.ZipFile(BytesIO(data)) as archive:
                if sum(item.file_size for item in archive.infolist()) > MAX_FILE:
                    raise VoiceFileError(f"{source} is more than {MAX_FILE} bytes when unpacked")
                return cls._from_archive(archive, source)
        except VoiceFileError:
            raise
        except ValidationError as error:
            item = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in item["loc"]) or "voice.json"
            raise VoiceFileError(f"{source} cannot be read: {where}: {item['msg']}") from error
        except (  # what zipfile, json and numpy raise for bytes that are none of theirs
            OSError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            SyntaxError,
            MemoryError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise VoiceFileError(f"{source} cannot be read: {error}") from error

    @classmethod
    def _from_archive(cls, archive: zipfile.ZipFile, source: str) -> Voice:
        said = json.loads(archive.read("voice.json"))
        found = said.get("format") if isinstance(said, dict) else None
        if found != FORMAT:
            raise VoiceFileError(f"{source} has format {found!r}, not {FORMAT!r}")
        meta = _Meta.model_validate(said)
        names = set(archive.namelist())
        references: list[Reference] = []
        for place, item in enumerate(meta.references):
            codes = _array(archive.read(f"codes{place}.npy")) if f"codes{place}.npy" in names else None
            if codes is not None and (
                codes.ndim != 2 or codes.dtype != np.int16 or not codes.size or int(codes.min()) < 0
            ):
                raise VoiceFileError(f"{source}: the codes of clip {place} are not codes")
            if codes is not None and f"pcm{place}.npy" not in names:
                pcm = np.zeros(0, dtype=np.int16)
            else:
                pcm = _array(archive.read(f"pcm{place}.npy"))
            if pcm.ndim != 1 or pcm.dtype != np.int16:
                raise VoiceFileError(f"{source}: the sound of clip {place} is not 16 bit mono")
            sound = pcm.astype(np.float32) / 32767.0
            references.append(Reference(text=item.text, pcm=sound, codes=codes, codec=item.codec))
        return cls(
            name=meta.name,
            scene=meta.scene,
            speakers=meta.speakers,
            references=tuple(references),
            system=meta.system,
            references_in_scene=meta.references_in_scene,
        )

    @classmethod
    def load(cls, path: str | Path) -> Voice:
        """Read what `save` wrote. Errors: `VoiceFileError`."""
        source = f"voice file {str(path)!r}"
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError as error:
            raise VoiceFileError(f"{source} does not exist") from error
        except (OSError, ValueError) as error:
            raise VoiceFileError(f"{source} cannot be read: {error}") from error
        return cls.from_bytes(data, source=source)

    @classmethod
    def named(cls, name: str, *, folder: str | Path | None = None) -> Voice:
        """A preset: from the operator's folder (`voices_folder` unless given), or one that ships with the embedded voice.

        Errors: `VoiceError` for a name that is not known, with those that are; `VoiceFileError`, `ClipError`.
        """
        from .presets import Presets

        return Presets(Path(folder) if folder is not None else voices_folder()).get(name)


def system_text(scene: str | None, speakers: str | list[str] | None) -> str:
    """A voice's system message as one text, for whoever builds messages of text."""
    voice = Voice.create(scene=scene, speakers=speakers)
    block = "\n\n".join(part for part in (voice.scene, "\n".join(voice.speaker_lines)) if part)
    return f"{SYSTEM}\n\n{SCENE_START}\n{block}\n{SCENE_END}" if block else SYSTEM


def _names_speaker(text: str) -> bool:
    head, colon, _ = text.partition(":")
    return bool(colon) and head.strip().upper().startswith("SPEAKER") and head.strip()[7:].isdigit()


def _npy(array: NDArray[np.int16]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes) -> NDArray[np.int16]:
    return np.load(BytesIO(data), allow_pickle=False)
