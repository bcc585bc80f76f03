"""Codes from elsewhere, sound from here: a `Synthesizer` over an engine that gives codes only.

What such an engine says becomes sound by the same codec stream as every other engine's, and the same guards watch over it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..audio import FRAME_RATE, to_int16
from ..conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    EngineInfo,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
    Synthesizer,
)
from ..errors import (
    CheckpointError,
    EngineClosedError,
    HiggsVoiceError,
    NoAudioError,
    RunawayError,
    SynthesisError,
)
from .guards import Guards, SilenceWatch

if TYPE_CHECKING:
    from ..codec import Decoder, DecodeStream, Encoder


class Sounding:
    """See `Synthesizer`. Subclasses say where the codes come from: `_connect` and `_disconnect`."""

    def __init__(self, model: str, codec: str | None, guards: Guards | None) -> None:
        self._model = model
        self._codec_name = codec
        self._guards = guards or Guards()
        self._starting = asyncio.Lock()
        self._closed = False
        self._failure: HiggsVoiceError | None = None
        """Why nothing more can be had."""
        self._line: Synthesizer | None = None
        """The engine of codes."""
        self._info: EngineInfo | None = None
        self._decoder: Decoder | None = None
        self._encoder: Encoder | None = None
        self._sounding = ThreadPoolExecutor(1, thread_name_prefix="higgs-voice codec")

    async def _connect(self) -> Synthesizer:
        """A started engine of codes. Errors: `HiggsVoiceError`."""
        raise NotImplementedError

    async def _disconnect(self) -> None:
        """End what `_connect` began, however far it came; idempotent."""
        raise NotImplementedError

    # Life

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineClosedError("the engine has not been started; await start() first")
        return self._info

    @property
    def failure(self) -> HiggsVoiceError | None:
        """Why this engine speaks nothing more, however long one waits; None while it does. It is for good: create another one."""
        return self._failure

    async def start(self) -> None:
        async with self._starting:
            if self._closed:
                raise EngineClosedError("this engine is closed; create another one")
            if self._line is not None:
                return
            connecting = asyncio.ensure_future(self._connect())
            try:
                await self._run(self._load_codec)
                line = await connecting
                assert self._decoder is not None
                theirs, ours = line.info, self._decoder
                if (theirs.num_codebooks, theirs.codebook_size) != (ours.num_codebooks, ours.codebook_size):
                    raise CheckpointError(
                        f"the model {self._model} and its codec do not fit: the model speaks {theirs.num_codebooks} codebooks of "
                        f"{theirs.codebook_size} codes, the codec has {ours.num_codebooks} of {ours.codebook_size}"
                    )
                if self._closed:
                    raise EngineClosedError("this engine is closed; create another one")
                self._line, self._info = line, replace(theirs, codec_fingerprint=ours.fingerprint, continues=False)
            except BaseException as error:
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                await self._disconnect()
                if self._closed and isinstance(error, Exception) and not isinstance(error, EngineClosedError):
                    raise EngineClosedError("this engine is closed; create another one") from error
                raise

    async def aclose(self) -> None:
        self._closed = True
        self._line = None
        await self._disconnect()
        self._sounding.shutdown(wait=False, cancel_futures=True)

    def _load_codec(self) -> None:
        from ..codec import Decoder, Encoder
        from ..model.loading import load_codec, resolve

        codec = load_codec(resolve(self._model, self._codec_name).codec)
        self._decoder, self._encoder = Decoder(codec), Encoder(codec)

    # Synthesizer

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(31)
        for attempt in range(self._guards.retries + 1):
            sampling = request.sampling.again() if attempt else request.sampling
            sampling = sampling.replace(seed=(seed + attempt) % 2**31)
            again = False
            async with aclosing(self._attempt(replace(request, sampling=sampling))) as events:
                async for event in events:
                    if isinstance(event, FinishedEvent):
                        collapsed = event.reason is FinishReason.EOS and event.frames < self._guards.min_frames
                        again = collapsed and attempt < self._guards.retries
                        if collapsed and not again:
                            tries = self._guards.retries + 1
                            error = NoAudioError(f"the model gave no sound for this text with {tries} seeds")
                            event = replace(event, reason=FinishReason.COLLAPSE, frames=0, error=error)
                    if not again:
                        yield event
            if not again:
                return

    async def _attempt(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        """One generation, with sound; nothing is given of one that collapses."""
        line, decoder = self._serving()
        stream = decoder.open() if request.pcm else None
        watch = SilenceWatch(self._guards)
        most = self._guards.max_frames(request.text)
        held: list[Codes] = []
        frames = start = 0
        asked = replace(request, pcm=False)
        try:
            async with aclosing(line.speak(asked)) as events:
                async for event in events:
                    ending: tuple[FinishReason, SynthesisError | None] | None = None
                    if isinstance(event, AudioEvent):
                        fresh = event.codes[:, : most - frames]
                        frames += fresh.shape[1]
                        held.append(fresh)
                        if stream is not None:
                            stream.push(fresh)
                        if frames >= most:
                            seconds = most / FRAME_RATE
                            said = f"stopped after {seconds:.1f} s of audio: the text cannot need more"
                            ending = FinishReason.RUNAWAY, RunawayError(said)
                    else:
                        ending = event.reason, event.error
                    collapsed = frames < self._guards.min_frames
                    if stream is not None and ending is not None and ending[0] is not FinishReason.STOPPED:
                        stream.finish()
                    if ending is None or (ending[0] is not FinishReason.STOPPED and not collapsed):
                        async for sound in self._sounds(stream, watch):
                            if isinstance(sound, SynthesisError):
                                ending = ending or (FinishReason.SILENCE, sound)
                                continue
                            yield AudioEvent(to_int16(sound).tobytes(), start, _joined(held, decoder.num_codebooks))
                            start += sound.size
                        if held and (stream is None or ending is not None) and not collapsed:
                            yield AudioEvent(b"", start, _joined(held, decoder.num_codebooks))
                    if ending is not None:
                        timings = event.timings if isinstance(event, FinishedEvent) else {}
                        yield FinishedEvent(ending[0], frames, ending[1], timings)
                        return
        except HiggsVoiceError as error:
            if self._failure is None:
                raise
            raise self._failure from error

    async def _sounds(
        self, stream: DecodeStream | None, watch: SilenceWatch
    ) -> AsyncGenerator[NDArray[np.float32] | SynthesisError]:
        """What can be decoded now, float32 [n] a piece; an error when there was too much silence in it."""
        while stream is not None and stream.ready:
            samples = await self._run(stream.pull)
            yield samples
            if (error := watch.hear(samples)) is not None:
                yield error

    def stop(self, speech_id: str) -> None:
        if self._line is not None:
            self._line.stop(speech_id)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        if self._line is not None:
            self._line.prepare(session_id, context)

    def close_session(self, session_id: str) -> None:
        if self._line is not None:
            self._line.close_session(session_id)

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        self._serving()
        assert self._encoder is not None
        return await self._run(self._encoder.encode, pcm)

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        _, decoder = self._serving()
        return await self._run(decoder.decode, codes)

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        line, _ = self._serving()
        return line.count_rows(context, text)

    # Inside

    def _serving(self) -> tuple[Synthesizer, Decoder]:
        if self._failure is not None:
            raise self._failure
        if self._line is None or self._decoder is None:
            raise EngineClosedError(
                "this engine is closed" if self._closed else "the engine is not running; await start() first"
            )
        return self._line, self._decoder

    async def _run(self, work: Any, *args: Any) -> Any:
        """On the codec's thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._sounding, work, *args)
        except RuntimeError as error:
            if self._closed:
                raise EngineClosedError("this engine is closed") from error
            raise


def _joined(held: list[Codes], codebooks: int) -> Codes:
    """What is held, [K, n], and nothing held any more."""
    codes = np.concatenate(held, axis=1) if held else np.zeros((codebooks, 0), dtype=np.int16)
    held.clear()
    return codes


__all__ = ["Sounding"]
