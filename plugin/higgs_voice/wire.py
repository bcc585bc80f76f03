"""What travels between a client and a server, version 1: JSON text messages, validated with pydantic, and binary frames for
what is made of numbers. `docs/protocol.md` describes the conversation.

A binary frame is one byte of kind, a fixed header in network byte order, and a body in little-endian order, which is that of
the arrays themselves.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .config import Sampling
from .errors import ProtocolError

VERSION = 1
PATH = "/v1/engine"
"""Where a server takes websockets."""
SUBPROTOCOL = f"higgs-voice.{VERSION}"
DEFAULT_PORT = 8765

CLOSE_PROTOCOL = 4400
"""Websocket close codes: the other side broke the protocol, and there is no sense in trying again."""
CLOSE_REFUSED = 4403
CLOSE_REPLACED = 4409
"""The same client came back on another connection."""
FINAL_CODES = frozenset({CLOSE_PROTOCOL, CLOSE_REFUSED, CLOSE_REPLACED})

LONGEST_NAME = 128
"""Characters of a session's or a speech's id."""
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[int, Field(ge=0, lt=2**32)]


class Message(BaseModel):
    """Base of all text messages: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ContextRef(Message):
    """A context whose exchanges are named by their digests."""

    system: str | None
    scene: str | None
    speakers: tuple[str, ...] = ()
    references: tuple[Digest, ...] = ()
    references_in_scene: bool = False
    exchanges: tuple[Digest, ...] = ()


class EngineFacts(Message):
    """`conversation.synthesizer.EngineInfo` as it travels."""

    model: str
    sample_rate: int
    frame_rate: int
    num_codebooks: int
    codebook_size: int
    max_positions: int
    max_clip_s: float
    codec_fingerprint: str
    continues: bool = False


class Failure(Message):
    """An error as it travels: a class of `errors.py` by name, and its sentence."""

    kind: str
    message: str


# --- from the client -------------------------------------------------------------------------------------------------


class Hello(Message):
    """First message of every connection. What it does not name and the server still holds for this client is ended."""

    type: Literal["hello"] = "hello"
    version: int
    client: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """A secret that the client draws once; a later connection that says it takes the client's sessions up again."""
    software: str = Field("", max_length=128)
    server: str = Field(default="", max_length=128)
    """`Welcome.server` of the process that `streams` were asked of: another one may hold older streams of this client."""
    sessions: tuple[Name, ...] = ()
    streams: dict[Number, Number] = Field(default_factory=dict)
    """Streams the client is still reading, and the number of the next frame it wants of each."""


class Speak(Message):
    """Speak one chunk of text: `conversation.synthesizer.SpeakRequest`, plus what flow control needs."""

    type: Literal["speak"] = "speak"
    stream: Number
    """Chosen by the client, never twice."""
    session: Name
    speech: Name
    context: ContextRef
    text: str
    sampling: Sampling
    next_context: ContextRef | None = None
    window: Count
    """Samples the server may be ahead of the last `Ack`."""
    pcm: bool = True
    """False: frames carry codes only; flow control counts the samples that the codes stand for."""
    spoken: Digest | None = None
    """What of this chunk another server has spoken, as an exchange; only where `EngineFacts.continues`."""
    heard: Count = 0
    """Samples of its sound that the client has."""


class Ack(Message):
    """The client took everything before frame `seq` and before sample `samples` of the stream."""

    type: Literal["ack"] = "ack"
    stream: Number
    seq: Number
    samples: Count


class Stop(Message):
    """End a stream at once; nothing more of it is sent."""

    type: Literal["stop"] = "stop"
    stream: Number


class Prepare(Message):
    """A hint: prefill this context in the background."""

    type: Literal["prepare"] = "prepare"
    session: Name
    context: ContextRef


class CloseSession(Message):
    type: Literal["close_session"] = "close_session"
    session: Name


class VoiceRequest(Message):
    """One of the server's voices by its name, as `GET /v1/voices` lists them; answered by a `VoiceFrame` or `Failed`."""

    type: Literal["voice"] = "voice"
    request: Number
    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


# --- from the server -------------------------------------------------------------------------------------------------


class Welcome(Message):
    """Answer to `Hello`."""

    type: Literal["welcome"] = "welcome"
    version: int
    server: str
    """Drawn anew by every server process."""
    engine: EngineFacts
    streams: tuple[Number, ...] = ()
    """Those of `Hello.streams` that go on; the client asks for the others again."""
    max_text: int
    """Characters that the text of one chunk may have."""
    draining: bool = False


class Unknown(Message):
    """The server does not hold these exchanges. The request had no effect: send them, then the request again."""

    type: Literal["unknown"] = "unknown"
    stream: Number | None
    """None for a `Prepare`, which is not repeated."""
    missing: tuple[Digest, ...]


class Finished(Message):
    """Last frame of a stream that did not fail: `conversation.synthesizer.FinishedEvent`."""

    type: Literal["finished"] = "finished"
    stream: Number
    seq: Number
    reason: str
    frames: Count
    error: Failure | None = None
    timings: dict[str, float] = Field(default_factory=dict)


class Failed(Message):
    """Last frame of a stream, or the answer to a binary request, that could not be served."""

    type: Literal["failed"] = "failed"
    stream: Number | None = None
    seq: Number = 0
    request: Number | None = None
    failure: Failure


class Draining(Message):
    """The server takes no new sessions and will end; those it has finish what they are saying."""

    type: Literal["draining"] = "draining"


class Refusal(Message):
    """The connection is refused; it is closed after this."""

    type: Literal["refusal"] = "refusal"
    failure: Failure


ClientMessage = Annotated[
    Hello | Speak | Ack | Stop | Prepare | CloseSession | VoiceRequest,
    Field(discriminator="type"),
]
ServerMessage = Annotated[
    Welcome | Unknown | Finished | Failed | Draining | Refusal,
    Field(discriminator="type"),
]
_CLIENT: TypeAdapter[Hello | Speak | Ack | Stop | Prepare | CloseSession | VoiceRequest] = TypeAdapter(ClientMessage)
_SERVER: TypeAdapter[Welcome | Unknown | Finished | Failed | Draining | Refusal] = TypeAdapter(ServerMessage)


def dump(message: Message) -> str:
    return message.model_dump_json()


def parse_client(text: str) -> Hello | Speak | Ack | Stop | Prepare | CloseSession | VoiceRequest:
    """A message of a client. Errors: `ProtocolError`."""
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        raise ProtocolError(_sentence("client", error)) from error


def parse_server(text: str) -> Welcome | Unknown | Finished | Failed | Draining | Refusal:
    """A message of a server. Errors: `ProtocolError`."""
    try:
        return _SERVER.validate_json(text)
    except ValidationError as error:
        raise ProtocolError(_sentence("server", error)) from error


def _sentence(side: str, error: ValidationError) -> str:
    item = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in item["loc"]) or "message"
    return f"the {side} sent a message that is not of protocol {SUBPROTOCOL}: {where}: {item['msg']}"


# --- binary frames ---------------------------------------------------------------------------------------------------

AUDIO, EXCHANGE, CLIP, CODES, SOUND, VOICE = 1, 2, 3, 4, 5, 6

_AUDIO = struct.Struct("!BIIQHI")
_EXCHANGE = struct.Struct("!BIHI")
_CLIP = struct.Struct("!BI")
_CODES = struct.Struct("!BIHI")


@dataclass(frozen=True, slots=True, eq=False)
class AudioFrame:
    """Server to client: a stretch of a stream's sound, its place, and the codes that became known with it."""

    stream: int
    seq: int
    start: int
    """Position of the first sample in the chunk."""
    codes: NDArray[np.int16]
    """[K, n]"""
    pcm: bytes
    """int16 little-endian mono."""

    def pack(self) -> bytes:
        rows, frames = self.codes.shape
        head = _AUDIO.pack(AUDIO, self.stream, self.seq, self.start, rows, frames)
        return head + code_bytes(self.codes) + self.pcm


@dataclass(frozen=True, slots=True, eq=False)
class ExchangeFrame:
    """Client to server: an exchange, to be named by its digest from now on."""

    text: str
    codes: NDArray[np.int16]
    """[K, T]"""

    def pack(self) -> bytes:
        text = self.text.encode()
        rows, frames = self.codes.shape
        return _EXCHANGE.pack(EXCHANGE, len(text), rows, frames) + text + code_bytes(self.codes)


@dataclass(frozen=True, slots=True, eq=False)
class ClipFrame:
    """Client to server: encode these samples."""

    request: int
    samples: NDArray[np.float32]
    """[n], 24 kHz."""

    def pack(self) -> bytes:
        return _CLIP.pack(CLIP, self.request) + self.samples.astype("<f4").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class CodesFrame:
    """Client to server: decode these codes. Server to client: the codes of the clip of that request."""

    request: int
    codes: NDArray[np.int16]
    """[K, T]"""

    def pack(self) -> bytes:
        rows, frames = self.codes.shape
        return _CODES.pack(CODES, self.request, rows, frames) + code_bytes(self.codes)


@dataclass(frozen=True, slots=True, eq=False)
class SoundFrame:
    """Server to client: the sound of the codes of that request."""

    request: int
    samples: NDArray[np.float32]
    """[n], 24 kHz."""

    def pack(self) -> bytes:
        return _CLIP.pack(SOUND, self.request) + self.samples.astype("<f4").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class VoiceFrame:
    """Server to client: the voice of that request, as a saved voice (`Voice.to_bytes`) with codes and without sound."""

    request: int
    data: bytes

    def pack(self) -> bytes:
        return _CLIP.pack(VOICE, self.request) + self.data


Frame = AudioFrame | ExchangeFrame | ClipFrame | CodesFrame | SoundFrame | VoiceFrame


def unpack(data: bytes) -> Frame:
    """A binary frame. Errors: `ProtocolError` for what is not one; ranges of codes are the receiver's to check."""
    try:
        match data[0] if data else None:
            case 1:
                _, stream, seq, start, rows, frames = _AUDIO.unpack_from(data)
                codes, end = _codes(data, _AUDIO.size, rows, frames)
                if (len(data) - end) % 2:
                    raise ProtocolError("a frame of audio ends within a sample")
                return AudioFrame(stream=stream, seq=seq, start=start, codes=codes, pcm=data[end:])
            case 2:
                _, length, rows, frames = _EXCHANGE.unpack_from(data)
                text = data[_EXCHANGE.size : _EXCHANGE.size + length]
                codes, end = _codes(data, _EXCHANGE.size + length, rows, frames)
                _at_end(data, end)
                return ExchangeFrame(text=text.decode(), codes=codes)
            case 3:
                return ClipFrame(request=_CLIP.unpack_from(data)[1], samples=_samples(data))
            case 4:
                _, request, rows, frames = _CODES.unpack_from(data)
                codes, end = _codes(data, _CODES.size, rows, frames)
                _at_end(data, end)
                return CodesFrame(request=request, codes=codes)
            case 5:
                return SoundFrame(request=_CLIP.unpack_from(data)[1], samples=_samples(data))
            case 6:
                return VoiceFrame(request=_CLIP.unpack_from(data)[1], data=data[_CLIP.size :])
            case kind:
                raise ProtocolError(f"a binary frame is of kind {kind}; {SUBPROTOCOL} has 1 to 6")
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"a binary frame of {len(data)} bytes is cut short or not of {SUBPROTOCOL}") from error


def digest(text: str, codes: NDArray[np.int16]) -> str:
    """The name of an exchange: 128 bits of BLAKE2b over its packed frame."""
    return hashlib.blake2b(ExchangeFrame(text, codes).pack(), digest_size=16).hexdigest()


def check_codes(codes: NDArray[np.int16], *, num_codebooks: int, codebook_size: int, max_frames: int) -> None:
    """Codes from outside never reach a model unchecked. Errors: `ProtocolError`."""
    rows, frames = codes.shape
    if rows != num_codebooks or frames > max_frames:
        raise ProtocolError(f"codes are [{rows}, {frames}]; this engine takes [{num_codebooks}, 0…{max_frames}]")
    if frames and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise ProtocolError(f"a code is outside 0…{codebook_size - 1}")


def code_bytes(codes: NDArray[np.int16]) -> bytes:
    return np.ascontiguousarray(codes, dtype="<i2").tobytes()


def _codes(data: bytes, start: int, rows: int, frames: int) -> tuple[NDArray[np.int16], int]:
    end = start + rows * frames * 2
    if end > len(data):
        raise ProtocolError(f"a frame announces codes [{rows}, {frames}] and is {end - len(data)} bytes short of them")
    flat = np.frombuffer(data, dtype="<i2", count=rows * frames, offset=start)
    return flat.astype(np.int16).reshape(rows, frames), end  # astype copies: the frame's own bytes are not aligned


def _samples(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, dtype="<f4", offset=_CLIP.size).astype(np.float32)


def _at_end(data: bytes, end: int) -> None:
    if end != len(data):
        raise ProtocolError(f"a frame is {len(data) - end} bytes longer than its header says")
