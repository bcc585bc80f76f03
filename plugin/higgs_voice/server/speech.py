"""`POST /v1/audio/speech`: OpenAI's request, spoken as it is made."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..audio import SAMPLE_RATE
from ..errors import DependencyError, RefusedError

FORMATS: dict[str, str] = {
    "pcm": "audio/pcm",
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
}

SLOWEST, FASTEST = 0.5, 2.0
"""Beyond these hardly a word is understood; a session refuses them too."""


class SpeechBody(BaseModel):
    """The fields of OpenAI's `audio.speech.create`. `response_format` is wav unless said otherwise, because that is what
    plays everywhere without an encoder; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")

    input: str = Field(min_length=1)
    model: str | None = None
    """Taken and not looked at: a server has one model."""
    voice: str | None = None
    instructions: str | None = None
    """A description of the speaker, for voices that have none of their own."""
    response_format: Literal["pcm", "wav", "mp3", "opus"] = "wav"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: float = Field(1.0, allow_inf_nan=False)
    """OpenAI's 0.25 to 4, of which `SLOWEST` to `FASTEST` can be spoken; at the same pitch."""
    seed: int | None = Field(None, ge=0)
    """Ours: the same seed gives the same sound."""


def check_speed(speed: float) -> None:
    """Before anything is spoken. Errors: `RefusedError` for what this server cannot speak at."""
    if not SLOWEST <= speed <= FASTEST:
        raise RefusedError(f"speed is {speed:g}; this server speaks from {SLOWEST:g} to {FASTEST:g}")
    if speed == 1.0:
        return
    from ..conversation.seams import Stretch

    try:
        Stretch(speed, SAMPLE_RATE)
    except DependencyError as error:
        raise RefusedError(
            f'speed is {speed:g}; this server takes only 1 until it has libsonic: pip install "higgs-voice[rate]"'
        ) from error


class Encoder(Protocol):
    def encode(self, pcm: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Pcm:
    """int16 little-endian mono at 24 kHz."""

    def encode(self, pcm: bytes) -> bytes:
        return pcm

    def finish(self) -> bytes:
        return b""


class Wav:
    """A wav file whose header says "to the end", because its length is not known when it is sent."""

    def __init__(self) -> None:
        most = 0xFFFFFFFF
        shape = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16)
        self._head = b"RIFF" + struct.pack("<I", most) + b"WAVE" + shape + b"data" + struct.pack("<I", most - 36)

    def encode(self, pcm: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + pcm

    def finish(self) -> bytes:
        head, self._head = self._head, b""
        return head


class Compressed:
    """mp3 and opus (in ogg), by libsndfile."""

    def __init__(self, kind: Literal["mp3", "opus"]) -> None:
        try:
            import soundfile
        except (ImportError, OSError) as error:
            raise DependencyError(f"{kind} needs soundfile: pip install soundfile") from error
        self._buffer = io.BytesIO()
        container, coding = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}[kind]
        # A player tells how long a streamed mp3 is from its bit rate, so that must not vary.
        self._file = soundfile.SoundFile(
            self._buffer,
            "w",
            samplerate=SAMPLE_RATE,
            channels=1,
            format=container,
            subtype=coding,
            bitrate_mode="CONSTANT" if kind == "mp3" else None,
            compression_level=0.5 if kind == "mp3" else None,
        )
        self._sent = 0

    def encode(self, pcm: bytes) -> bytes:
        self._file.write(np.frombuffer(pcm, dtype="<i2"))
        return self._new()

    def finish(self) -> bytes:
        self._file.close()
        return self._new()

    def _new(self) -> bytes:
        data = self._buffer.getvalue()[self._sent :]
        self._sent += len(data)
        return data


def encoder(kind: str) -> Encoder:
    match kind:
        case "pcm":
            return Pcm()
        case "mp3" | "opus":
            return Compressed(kind)
        case _:
            return Wav()


async def encoded(sound: AsyncGenerator[bytes], kind: str) -> AsyncGenerator[bytes]:
    """PCM to a file of `kind`, piece by piece."""
    file = encoder(kind)
    async with aclosing(sound):
        async for pcm in sound:
            if data := file.encode(pcm):
                yield data
    if data := file.finish():
        yield data


async def as_events(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """OpenAI's server-sent events."""
    async with aclosing(pieces):
        async for data in pieces:
            yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    yield _event({"type": "speech.audio.done", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
