"""An engine of deterministic tones: no model, no torch, no time spent. For tests, ours and our users'."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable

import numpy as np
from numpy.typing import NDArray

from ..audio import HOP, SAMPLE_RATE, to_int16
from ..conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    EngineInfo,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
)
from ..errors import EngineClosedError, NoAudioError, RunawayError, SilenceError, SynthesisError

_ERRORS: dict[FinishReason, type[SynthesisError]] = {
    FinishReason.RUNAWAY: RunawayError,
    FinishReason.SILENCE: SilenceError,
    FinishReason.COLLAPSE: NoAudioError,
}


class FakeSynthesizer:
    """Speaks every text as a tone: `frames_per_char` frames a character, pitch by text, codes by text and frame.

    Args:
        frames_per_char: how long a text sounds (25 frames are a second).
        frames_per_event: frames an `AudioEvent` carries.
        pace: awaited between events; by default one turn of the event loop. A test passes its own to hold it or let it go.
        script: what happens for a text instead of speaking: a `FinishReason` of a guard, or an exception to raise.
    """

    def __init__(
        self,
        *,
        frames_per_char: float = 1.5,
        frames_per_event: int = 5,
        pace: Callable[[SpeakRequest, int], object] | None = None,
        script: Callable[[SpeakRequest], FinishReason | BaseException | None] | None = None,
        num_codebooks: int = 8,
        max_positions: int = 8192,
    ) -> None:
        self.requests: list[SpeakRequest] = []
        """Every request, in order."""
        self.prepared: list[ContextSpec] = []
        self.active: set[str] = set()
        """Speech ids that are being generated now."""
        self.steps = 0
        """Frames generated in all."""
        self._info = EngineInfo(
            model="fake",
            num_codebooks=num_codebooks,
            codebook_size=1024,
            max_positions=max_positions,
            codec_fingerprint="fake",
            continues=True,
        )
        self._frames_per_char = frames_per_char
        self._frames_per_event = frames_per_event
        self._pace = pace
        self._script = script
        self._stopped: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def start(self) -> None:
        return

    async def aclose(self) -> None:
        self._closed = True
        self._stopped.update(self.active)

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        if self._closed:
            raise EngineClosedError("this engine is closed")
        self.requests.append(request)
        self.active.add(request.speech_id)
        try:
            async with self._locks.setdefault(request.session_id, asyncio.Lock()):
                ending = self._script(request) if self._script is not None else None
                if isinstance(ending, BaseException):
                    raise ending
                async for event in self._tone(request, ending):
                    yield event
        finally:
            self.active.discard(request.speech_id)
            self._stopped.discard(request.speech_id)

    async def _tone(self, request: SpeakRequest, ending: FinishReason | None) -> AsyncGenerator[SpeechEvent]:
        frames = max(2, round(len(request.text) * self._frames_per_char))
        frames = min(frames, request.sampling.max_new_tokens)
        if ending is FinishReason.COLLAPSE:
            frames = 0
        codes = self.codes_for(request.text, frames)
        sent = heard = 0
        if request.spoken is not None:
            sent = min(request.spoken_frames, frames)
            heard = min(request.heard, sent * HOP)
            codes = np.concatenate([request.spoken[:, :sent], codes[:, sent:]], axis=1)
        sound = to_int16(self.sound_of(codes))
        while sent < frames:
            count = min(self._frames_per_event, frames - sent)
            pause = self._pace(request, sent) if self._pace is not None else asyncio.sleep(0)
            if asyncio.iscoroutine(pause) or isinstance(pause, asyncio.Future):
                await pause
            if request.speech_id in self._stopped:
                yield FinishedEvent(FinishReason.STOPPED, sent)
                return
            self.steps += count
            pcm = sound[heard : (sent + count) * HOP].tobytes()
            fresh = codes[:, sent : sent + count]
            yield AudioEvent(pcm, heard, fresh) if request.pcm else AudioEvent(b"", 0, fresh)
            sent += count
            heard = sent * HOP
        if request.pcm and heard < sent * HOP:
            yield AudioEvent(sound[heard:].tobytes(), heard, codes[:, sent:])
        reason = ending or FinishReason.EOS
        kind = _ERRORS.get(reason)
        yield FinishedEvent(reason, frames, kind(f"scripted for {request.text!r}") if kind else None)

    def stop(self, speech_id: str) -> None:
        if speech_id in self.active:
            self._stopped.add(speech_id)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        self.prepared.append(context)

    def close_session(self, session_id: str) -> None:
        self._stopped.update(request.speech_id for request in self.requests if request.session_id == session_id)
        self._stopped &= self.active
        self._locks.pop(session_id, None)

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        digest = hashlib.sha256(np.ascontiguousarray(pcm, dtype=np.float32).tobytes()).hexdigest()
        return self.codes_for(digest, -(-pcm.size // HOP))

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        return self.sound_of(codes)

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        items: tuple[Exchange, ...] = (*context.voice.references, *context.exchanges)
        return 40 + len(text) + sum(len(item.text) + item.frames + 20 for item in items)

    def codes_for(self, text: str, frames: int) -> Codes:
        """The codes [K, frames] of a text: the same for the same text, whatever the context."""
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "little")
        rng = np.random.default_rng(seed)
        return rng.integers(0, 1024, (self._info.num_codebooks, frames), dtype=np.int16)

    def sound_of(self, codes: Codes) -> NDArray[np.float32]:
        """A tone per frame, 200 to 500 Hz by the frame's first code, without phase jumps: [T * 960]."""
        if codes.shape[1] == 0:
            return np.zeros(0, dtype=np.float32)
        pitch = np.repeat(200.0 + 300.0 * codes[0].astype(np.float64) / 1023.0, HOP)
        return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)).astype(np.float32)
