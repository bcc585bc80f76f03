"""A conversation's voice as bytes: what a call needs to go on elsewhere with the codes it would have had here.

Two lines of JSON. The first says format, version and checksum of the second; it is read before anything else is, so that a
newer version is told apart from damage. The second holds the voice (clips as codes), settings, lexicon, speaking rate, and the
text and codes of the exchanges in the context. Nothing in it can run code. It is not signed and not encrypted: it holds what
the agent said, and belongs where recordings of calls do.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import SnapshotError
from ..text.lexicon import Lexicon
from .context import ContextState
from .synthesizer import Codes, EngineInfo, Exchange
from .voice import Reference, Voice

FORMAT = "higgs-voice/snapshot"
VERSION = 1
MAX_BYTES = 16 * 2**20
"""Of a snapshot. A minute of speech is 32 kB."""
_MAX_HEADER = 256

_Text = Annotated[str, Field(max_length=65536)]
_Line = Annotated[str, Field(max_length=8192)]
_Word = Annotated[str, Field(max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings")


class SavedExchange(_Part):
    text: _Text
    codes: Base64Bytes
    """int16 little-endian [K, T], row by row."""


class SavedEngine(_Part):
    """Whose codes they are."""

    model: _Line
    sample_rate: int
    frame_rate: int
    num_codebooks: Annotated[int, Field(ge=1, le=64)]
    codebook_size: int
    codec: _Word


class SavedVoice(_Part):
    name: _Word
    scene: _Line | None
    speakers: Annotated[tuple[_Line, ...], Field(max_length=64)]
    system: _Line | None
    references: Annotated[tuple[SavedExchange, ...], Field(max_length=64)]
    references_in_scene: bool = False


class Snapshot(_Part):
    """What a session's next speech would start from. `VoiceSession.snapshot` makes it, `VoiceSession.restore` takes it up."""

    engine: SavedEngine
    call_id: _Word
    """Of the call, in log lines and spans; it stays the call's."""
    turns: Annotated[int, Field(ge=0, lt=2**53)]
    """Speeches so far."""
    voice: SavedVoice
    settings: dict[str, Any]
    """Of `SessionSettings`, which checks them. JSON has no number for a bound that is none: it stands as "Infinity"."""
    lexicon: dict[_Line, _Line] | None
    s_per_unit: Annotated[float, Field(gt=0.0, lt=10.0)]
    """The speaking rate so far, which word times start from."""
    exchanges: Annotated[tuple[SavedExchange, ...], Field(max_length=65536)]
    """Oldest first: the pinned one where it has left the window, then the window."""
    window: Annotated[int, Field(ge=0, le=1)]
    """Where in `exchanges` the window begins."""
    pinned: Annotated[int, Field(ge=0)] | None
    """Which of `exchanges` never leaves."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        frame = 2 * self.engine.num_codebooks
        for item in (*self.voice.references, *self.exchanges):
            if not item.codes or len(item.codes) % frame:
                raise ValueError(
                    f"codes of {len(item.codes)} bytes are no frames of {self.engine.num_codebooks} codebooks"
                )
        if self.pinned is not None and self.pinned >= len(self.exchanges):
            raise ValueError(f"exchange {self.pinned} is pinned, and there are {len(self.exchanges)}")
        if self.window and self.pinned != 0:
            raise ValueError("an exchange before the window must be the pinned one")
        return self

    # To and from bytes

    def dump(self) -> bytes:
        """Errors: `SnapshotError` where it would be more than `MAX_BYTES`."""
        body = self.model_dump_json().encode()
        head = {"format": FORMAT, "version": VERSION, "blake2b": _checksum(body)}
        data = json.dumps(head).encode() + b"\n" + body
        if len(data) > MAX_BYTES:
            raise SnapshotError(
                f"the snapshot would have {len(data)} bytes and may have {MAX_BYTES}; a bounded window keeps it small"
            )
        return data

    @classmethod
    def parse(cls, data: bytes) -> Snapshot:
        """What `dump` gave. Errors: `SnapshotError`."""
        if len(data) > MAX_BYTES:
            raise SnapshotError(f"the snapshot has {len(data)} bytes; at most {MAX_BYTES} are read")
        head, newline, body = data.partition(b"\n")
        header = _header(head) if newline and len(head) <= _MAX_HEADER else {}
        version = header.get("version")
        if header.get("format") != FORMAT or not isinstance(version, int):
            raise SnapshotError("this is no snapshot of a session (VoiceSession.snapshot() makes one)")
        if version != VERSION:
            raise SnapshotError(
                f"the snapshot has version {version} and this higgs-voice reads version {VERSION}; "
                + ("update higgs-voice here" if version > VERSION else "take it up with the version that made it")
            )
        if header.get("blake2b") != _checksum(body):
            raise SnapshotError("the snapshot is damaged: its checksum does not fit what it holds")
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            item = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in item["loc"]) or "its contents"
            raise SnapshotError(f"the snapshot cannot be taken up: {where}: {item['msg']}") from error

    # From and to what a session works with

    @classmethod
    def of(
        cls,
        *,
        info: EngineInfo,
        voice: Voice,
        state: ContextState,
        settings: dict[str, Any],
        lexicon: Lexicon | None,
        s_per_unit: float,
        call_id: str,
        turns: int,
    ) -> Snapshot:
        """`voice` with codes of the engine's codec for every clip. Errors: `SnapshotError` for what is beyond the limits."""
        exchanges = state.exchanges
        try:
            return cls(
                engine=SavedEngine(
                    model=info.model,
                    sample_rate=info.sample_rate,
                    frame_rate=info.frame_rate,
                    num_codebooks=info.num_codebooks,
                    codebook_size=info.codebook_size,
                    codec=info.codec_fingerprint,
                ),
                call_id=call_id,
                turns=turns,
                voice=SavedVoice(
                    name=_plain(voice.name),
                    scene=None if voice.scene is None else _plain(voice.scene),
                    speakers=tuple(_plain(line) for line in voice.speakers),
                    system=None if voice.system is None else _plain(voice.system),
                    references=tuple(
                        _saved(item.text, item.codes) for item in voice.references if item.codes is not None
                    ),
                    references_in_scene=voice.references_in_scene,
                ),
                settings=settings,
                lexicon=dict(lexicon.entries) if lexicon is not None else None,
                s_per_unit=s_per_unit,
                exchanges=tuple(_saved(item.text, item.codes) for item in exchanges),
                window=len(exchanges) - len(state.window),
                pinned=next((place for place, item in enumerate(exchanges) if item is state.pinned), None),
            )
        except ValidationError as error:
            item = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in item["loc"])
            raise SnapshotError(f"this session cannot be kept as a snapshot: {where}: {item['msg']}") from error

    def check(self, info: EngineInfo) -> None:
        """Whether an engine speaks these codes, and every code is one. Errors: `SnapshotError`."""
        ours = (info.num_codebooks, info.codebook_size, info.sample_rate, info.frame_rate, info.codec_fingerprint)
        its = self.engine
        if ours != (its.num_codebooks, its.codebook_size, its.sample_rate, its.frame_rate, its.codec):
            raise SnapshotError(
                f"the snapshot holds codes of another codec ({its.model!r}) than this engine's ({info.model!r}); "
                "a call moves between engines of one codec"
            )
        for item in (*self.voice.references, *self.exchanges):
            codes = self._codes(item)
            if codes.shape[1] > info.max_positions:
                raise SnapshotError(
                    f"an exchange of the snapshot has {codes.shape[1]} frames; this engine takes {info.max_positions}"
                )
            if int(codes.min()) < 0 or int(codes.max()) >= info.codebook_size:
                raise SnapshotError(f"a code of the snapshot is outside 0…{info.codebook_size - 1}")

    def to_voice(self) -> Voice:
        """The voice, its clips as codes without sound."""
        silent = np.zeros(0, dtype=np.float32)
        saved = self.voice
        return Voice(
            name=saved.name,
            scene=saved.scene,
            speakers=saved.speakers,
            system=saved.system,
            references=tuple(
                Reference(text=item.text, pcm=silent, codes=self._codes(item), codec=self.engine.codec)
                for item in saved.references
            ),
            references_in_scene=saved.references_in_scene,
        )

    def to_state(self) -> ContextState:
        """The context."""
        exchanges = tuple(Exchange(text=item.text, codes=self._codes(item)) for item in self.exchanges)
        pinned = exchanges[self.pinned] if self.pinned is not None else None
        return ContextState(pinned=pinned, window=exchanges[self.window :])

    def _codes(self, item: SavedExchange) -> Codes:
        flat = np.frombuffer(item.codes, dtype="<i2").astype(np.int16)
        return flat.reshape(self.engine.num_codebooks, -1)


def _saved(text: str, codes: Codes) -> SavedExchange:
    return SavedExchange(text=_plain(text), codes=base64.b64encode(np.ascontiguousarray(codes, dtype="<i2").tobytes()))


def _header(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _checksum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _plain(text: str) -> str:
    """JSON cannot say half of a surrogate pair, which an LLM's broken stream may leave; engines do not hear it either."""
    return text.encode("utf-8", "replace").decode()


__all__ = ["Snapshot"]
