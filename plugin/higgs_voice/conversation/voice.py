"""Who speaks: a scene, descriptions of the speakers, and reference clips. A voice is saved state."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..audio import SAMPLE_RATE, clip_from_array, load_clip, to_int16
from ..errors import VoiceError, VoiceFileError
from .synthesizer import Codes, Exchange, Synthesizer, VoicePrompt

SYSTEM = "Generate audio following instruction."
FORMAT = "higgs-voice/voice/1"


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A clip to clone, with what is said in it."""

    text: str
    pcm: NDArray[np.float32]
    """float32 mono at 24 kHz, [n]."""
    codes: Codes | None = None
    """[K, T], once an engine has encoded the clip."""
    codec: str = ""
    """Fingerprint of the codec that made `codes`; another codec encodes the clip again."""

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
    """Descriptions. One that does not begin with ``SPEAKER<n>:`` gets its place in the tuple as its number."""
    references: tuple[Reference, ...] = ()
    system: str | None = field(default=SYSTEM)

    @classmethod
    def create(
        cls,
        *,
        name: str = "default",
        scene: str | None = None,
        speakers: str | list[str] | tuple[str, ...] | None = None,
        references: Reference | list[Reference] | tuple[Reference, ...] | None = None,
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
        )

    @property
    def speaker_lines(self) -> tuple[str, ...]:
        """Complete lines of the scene block."""
        return tuple(
            text if _names_speaker(text) else f"SPEAKER{place}: {text}" for place, text in enumerate(self.speakers)
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
                seconds = len(reference.pcm) / SAMPLE_RATE
                if seconds > engine.info.max_clip_s:
                    raise VoiceError(
                        f"the reference clip of voice {self.name!r} is {seconds:.0f} s long; "
                        f"this engine takes {engine.info.max_clip_s:.0f} s"
                    )
                reference = replace(reference, codes=await engine.encode(reference.pcm), codec=fingerprint)
            references.append(reference)
        return replace(self, references=tuple(references))

    def _prompt(self) -> VoicePrompt:
        several = len(self.references) > 1
        exchanges: list[Exchange] = []
        for place, reference in enumerate(self.references):
            if reference.codes is None:
                raise VoiceError(f"voice {self.name!r} has a clip that no engine has encoded; call resolve() first")
            text = f"[SPEAKER{place}] {reference.text}" if several else reference.text
            exchanges.append(Exchange(text=text, codes=reference.codes))
        return VoicePrompt(
            system=self.system, scene=self.scene, speakers=self.speaker_lines, references=tuple(exchanges)
        )

    def save(self, path: str | Path) -> None:
        """Write one file: a zip of JSON and npy arrays, nothing that could run code."""
        meta = {
            "format": FORMAT,
            "name": self.name,
            "scene": self.scene,
            "speakers": list(self.speakers),
            "system": self.system,
            "references": [{"text": r.text, "codec": r.codec if r.codes is not None else ""} for r in self.references],
        }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("voice.json", json.dumps(meta, indent=1, ensure_ascii=False))
            for place, reference in enumerate(self.references):
                archive.writestr(f"pcm{place}.npy", _npy(to_int16(reference.pcm)))
                if reference.codes is not None:
                    archive.writestr(f"codes{place}.npy", _npy(reference.codes.astype(np.int16)))

    @classmethod
    def load(cls, path: str | Path) -> Voice:
        """Read what `save` wrote. Errors: `VoiceFileError`."""
        try:
            with zipfile.ZipFile(path) as archive:
                meta = json.loads(archive.read("voice.json"))
                if meta.get("format") != FORMAT:
                    raise VoiceFileError(f"voice file {str(path)!r} has format {meta.get('format')!r}, not {FORMAT!r}")
                names = set(archive.namelist())
                references: list[Reference] = []
                for place, item in enumerate(meta["references"]):
                    pcm = _array(archive.read(f"pcm{place}.npy")).astype(np.float32) / 32767.0
                    codes = _array(archive.read(f"codes{place}.npy")) if f"codes{place}.npy" in names else None
                    if codes is not None and (codes.ndim != 2 or codes.dtype != np.int16 or int(codes.min()) < 0):
                        raise VoiceFileError(f"voice file {str(path)!r}: the codes of clip {place} are not codes")
                    references.append(Reference(text=str(item["text"]), pcm=pcm, codes=codes, codec=str(item["codec"])))
                return cls(
                    name=str(meta["name"]),
                    scene=meta["scene"],
                    speakers=tuple(meta["speakers"]),
                    references=tuple(references),
                    system=meta["system"],
                )
        except FileNotFoundError as error:
            raise VoiceFileError(f"voice file {str(path)!r} does not exist") from error
        except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            if isinstance(error, VoiceFileError):
                raise
            raise VoiceFileError(f"voice file {str(path)!r} cannot be read: {error}") from error


def _names_speaker(text: str) -> bool:
    head, colon, _ = text.partition(":")
    return bool(colon) and head.strip().upper().startswith("SPEAKER") and head.strip()[7:].isdigit()


def _npy(array: NDArray[np.int16]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes) -> NDArray[np.int16]:
    return np.load(BytesIO(data), allow_pickle=False)
