"""What a session asks of an engine: plain data in, events out, no tensors.

The Protocol is message-shaped, so that a process boundary fits anywhere. A request carries the *whole* context it is to
be spoken in; an engine keeps the model's state of earlier requests only as a cache of it (it reuses the longest prefix
that is equal, row by row). A rollback, an eviction or a change of voice is therefore nothing but another context in the
next request, and an engine that has lost its state rebuilds it from the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..config import Sampling
from ..errors import SynthesisError

Codes = NDArray[np.int16]
"""Audio codes of one stretch of sound: [K codebooks, T frames], 25 frames a second, no delay, no BOS or EOS."""


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """A chunk of text and its audio: one user message and one assistant message of the context."""

    text: str
    """What the model was given to say, normalised."""
    codes: Codes
    """What it sounded like, [K, T]."""

    @property
    def frames(self) -> int:
        return int(self.codes.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class VoicePrompt:
    """The part of a context that never leaves it: the system message and the reference clips."""

    system: str | None = "Generate audio following instruction."
    """First line of the system message; None leaves the whole system message out."""
    scene: str | None = None
    speakers: tuple[str, ...] = ()
    """Lines of the scene block such as ``SPEAKER0: feminine; warm``; complete lines, in order."""
    references: tuple[Exchange, ...] = ()
    """Transcript and codes of each clip, as earlier exchanges of the conversation."""
    references_in_scene: bool = False
    """The clips stand in the scene block, as the description of SPEAKER0, SPEAKER1, …; their transcripts are not used."""


@dataclass(frozen=True, slots=True, eq=False)
class ContextSpec:
    """Everything the model hears before a new chunk."""

    voice: VoicePrompt = field(default_factory=VoicePrompt)
    exchanges: tuple[Exchange, ...] = ()
    """Pinned exchange first (if any), then the window, oldest first."""


@dataclass(frozen=True, slots=True, eq=False)
class SpeakRequest:
    """Speak one chunk of text in a context."""

    session_id: str
    speech_id: str
    """Unique for ever; `Synthesizer.stop` takes it."""
    context: ContextSpec
    text: str
    sampling: Sampling
    next_context: ContextSpec | None = None
    """A hint: the context that the chunk after this one will start from, less this chunk's own exchange. An engine may
    prefill it in the background, so that a window that slides costs no time later."""
    pcm: bool = True
    """False: only the codes are wanted; events come for every frame and their ``pcm`` is empty."""
    spoken: Codes | None = None
    """Frames [K, n] of this very chunk that another engine spoke before it was lost, where `EngineInfo.continues`: this one goes on
    behind them, whatever it would have said itself. Events bring what comes after them, and sound from sample `heard` on."""
    heard: int = 0
    """Samples of the sound of `spoken` that are there already, whole frames of them; the rest of it comes first."""

    @property
    def spoken_frames(self) -> int:
        return int(self.spoken.shape[1]) if self.spoken is not None else 0


class FinishReason(StrEnum):
    EOS = "eos"
    """The model said so."""
    LENGTH = "length"
    """`Sampling.max_new_tokens` was reached."""
    STOPPED = "stopped"
    """`Synthesizer.stop` or `close_session` was called."""
    RUNAWAY = "runaway"
    """Guard: more audio than the text can need. The exchange never enters a context."""
    SILENCE = "silence"
    """Guard: silence that went on. The exchange never enters a context."""
    COLLAPSE = "collapse"
    """Guard: no audio, also after retries with other seeds. The exchange never enters a context."""

    @property
    def guarded(self) -> bool:
        """Whether a guard ended the chunk, so that its exchange must not be remembered."""
        return self in (FinishReason.RUNAWAY, FinishReason.SILENCE, FinishReason.COLLAPSE)


@dataclass(frozen=True, slots=True, eq=False)
class AudioEvent:
    """A stretch of sound, in order and without gaps."""

    pcm: bytes
    """int16 little-endian mono at `EngineInfo.sample_rate`."""
    start: int
    """Position of the first sample in this chunk, in samples."""
    codes: Codes
    """The frames [K, n] that became known since the last event. They run ahead of the sound by the codec's look-ahead:
    sound at sample s came from frame s // 960, but a codes array need not be as long as its pcm."""


@dataclass(frozen=True, slots=True, eq=False)
class FinishedEvent:
    """The last event of every stream that did not raise."""

    reason: FinishReason
    frames: int
    """All frames of the chunk; frames * 960 samples were sent unless it was stopped."""
    error: SynthesisError | None = None
    """Set when a guard ended the chunk."""
    timings: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds, measured by the engine: ``queue``, ``prefill``, ``ttfa``, ``total``; and ``prefilled`` (rows)."""


SpeechEvent = AudioEvent | FinishedEvent


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a client must know of an engine."""

    model: str
    sample_rate: int = 24000
    frame_rate: int = 25
    num_codebooks: int = 8
    codebook_size: int = 1024
    """Codes are 0 … codebook_size - 1 (the special BOS and EOS rows are the engine's own business)."""
    max_positions: int = 8192
    """Rows (text tokens plus audio frames) that a context and the new chunk may have together."""
    max_clip_s: float = 30.0
    codec_fingerprint: str = ""
    """Codes of two engines with the same fingerprint mean the same sound."""
    continues: bool = False
    """Whether it goes on with a chunk that another engine began (`SpeakRequest.spoken`). One that does not is asked for the chunk anew,
    with the same seed, and must give the same codes again."""


@runtime_checkable
class Synthesizer(Protocol):
    """An engine. All methods are called on the event loop's thread; none of them may block it."""

    @property
    def info(self) -> EngineInfo:
        """Known after `start`."""
        ...

    async def start(self) -> None:
        """Load and warm up; idempotent. Errors: `ModelError`, `RemoteError`."""
        ...

    async def aclose(self) -> None:
        """Stop every stream and free everything; idempotent."""
        ...

    def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        """Speak one chunk. The iterator ends with a `FinishedEvent` or raises `EngineError` or `RemoteError`. A session's
        requests run one after another: a request waits until the session's previous one has ended. Closing the iterator
        early stops the generation."""
        ...

    def stop(self, speech_id: str) -> None:
        """Stop within one step, also during a prefill; returns at once; unknown ids are ignored."""
        ...

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        """A hint: prefill this context in the background, behind everything that is being spoken."""
        ...

    def close_session(self, session_id: str) -> None:
        """Stop the session's streams and free its state; returns at once."""
        ...

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        """Codes [K, T] of a clip: float32 mono at `EngineInfo.sample_rate`, shape [n]."""
        ...

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        """The sound of codes [K, T], decoded whole: float32 mono [T * 960]."""
        ...

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        """Rows that a context and a new chunk's text take, of `EngineInfo.max_positions`; an estimate may err high."""
        ...
