"""The model in this process: transformers' Higgs Audio v2, stepped by `model`, sounded by `codec`."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio import FRAME_RATE, HOP, SAMPLE_RATE, to_int16
from ..codec import Decoder, DecodeStream, Encoder
from ..codec.graphs import clips_stream
from ..config import Sampling
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
    VoicePrompt,
)
from ..errors import EngineClosedError, EngineDiedError, EngineError, SettingsError, SynthesisError
from ..model.loading import Loaded, load
from ..model.prompt import PromptBuilder, Rows
from ..model.runner import Runner, wait_for
from ..model.scheduler import NOT_STARTED, Scheduler
from ..model.worker import Job, Worker
from .decoding import AMPLE_S, COMFORTABLE_S, DecodeThread
from .guards import Guards, SilenceWatch

log = logging.getLogger("higgs_voice.local")

CPU_BATCH, GPU_BATCH = 16, 64
"""Streams stepped together at most."""

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class _Channel:
    """Events from the worker's thread to one consumer on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, taken: int = 0) -> None:
        self._loop = loop
        self._events: deque[SpeechEvent | Exception] = deque()
        self._arrived = asyncio.Event()
        self.taken = taken
        """Samples the consumer has taken."""

    def put(self, event: SpeechEvent | Exception) -> None:
        """From any thread. A consumer whose loop is gone gets nothing."""
        try:
            self._loop.call_soon_threadsafe(self._arrive, event)
        except RuntimeError:
            log.debug("the event loop of a stream is closed; its events are dropped")

    def _arrive(self, event: SpeechEvent | Exception) -> None:
        self._events.append(event)
        self._arrived.set()

    async def get(self) -> SpeechEvent | Exception:
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, AudioEvent):
            self.taken += len(event.pcm) // 2
        return event


@dataclass(slots=True)
class _Listening:
    """What the listener of a session has left to hear, over all of its chunks; plain floats, for any thread."""

    until: float = 0.0
    """When all that was sent will have been played."""


class _Stream:
    """One chunk on its way out: codes in on the worker's thread, sound out on the codec's. Implements the worker's `Listener`
    and the codec's `SoundStream`."""

    def __init__(
        self,
        channel: _Channel,
        guards: Guards,
        decode: DecodeStream,
        sound: DecodeThread | None,
        listening: _Listening,
        codebooks: int,
        spoken: int = 0,
    ) -> None:
        """``spoken``: frames of the chunk that were there before."""
        self.channel = channel
        self._listening = listening
        self._no_codes: Codes = np.zeros((codebooks, 0), dtype=np.int16)
        self.decode = decode
        self.closed = False
        self.job: Job | None = None
        self._sound = sound
        """Who makes sound of the codes; None where the codes are all that is wanted."""
        self._watch = SilenceWatch(guards)
        self._lock = threading.Lock()
        self._codes: list[Codes] = []
        self._frames = spoken
        self._first = self._sent = channel.taken
        self._ending: tuple[FinishReason, Exception | None] = FinishReason.EOS, None

    def view(self) -> tuple[float, float]:
        made = self._frames * HOP if self._sound is not None else 0
        waiting = (max(made, self._sent) - self.channel.taken) / SAMPLE_RATE
        buffered = self._listening.until - time.monotonic()
        return (NOT_STARTED if self._sent == self._first and buffered <= 0 else buffered), waiting

    # The worker's thread

    def push(self, codes: Codes) -> None:
        with self._lock:
            self._codes.append(codes)
            self._frames += codes.shape[1]
        if self._sound is not None:
            self._sound.push(self, codes)
        else:
            self.send(np.zeros(0, dtype=np.float32))

    def ended(self, reason: str, error: Exception | None) -> None:
        if reason == "error":
            self.fail(error if error is not None else EngineDiedError("the engine failed"))
            return
        self._ending = FinishReason(reason), error
        if self._ending[0] is FinishReason.STOPPED:
            self._listening.until = 0.0  # who interrupts does not listen to the rest
            self.finish()
        elif self._sound is None:
            self.finish()
        else:
            self._sound.end(self)

    # The codec's thread

    def send(self, samples: NDArray[np.float32]) -> None:
        """More sound, float32 [n], with the codes known since the last."""
        with self._lock:
            if self.closed or (not samples.size and not self._codes):
                return
            now = time.monotonic()
            codes = np.concatenate(self._codes, axis=1) if self._codes else self._no_codes
            # Who wants codes alone makes sound of them, and plays that.
            new = samples.size if self._sound is not None else codes.shape[1] * HOP
            self._listening.until = max(self._listening.until, now) + new / SAMPLE_RATE
            job = self.job
            if job is not None:
                job.timings.setdefault("ttfa", now - job.submitted)
            self._codes.clear()
            self.channel.put(AudioEvent(pcm=to_int16(samples).tobytes(), start=self._sent, codes=codes))
            self._sent += samples.size
        if (error := self._watch.hear(samples)) is not None:
            self._ending = FinishReason.SILENCE, error
            self.finish()

    # Either thread

    def finish(self) -> None:
        """The event that ends it; the model, if it goes on, is stopped by who reads it."""
        (reason, error), job = self._ending, self.job
        if job is not None:
            job.timings["total"] = time.monotonic() - job.submitted
        self._close(
            lambda: FinishedEvent(
                reason=reason,
                frames=self._frames,
                error=error if isinstance(error, SynthesisError) else None,
                timings=dict(job.timings) if job is not None else {},
            )
        )

    def fail(self, error: Exception) -> None:
        self._close(lambda: error)

    def _close(self, last: Callable[[], SpeechEvent | Exception]) -> None:
        """The last event of the stream; what comes after it is dropped."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self.channel.put(last())


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What an engine runs on, loaded and not started."""

    loaded: Loaded
    scheduler: Scheduler
    builder: PromptBuilder
    decoder: Decoder
    encoder: Encoder
    worker: Worker
    sound: DecodeThread


class LocalSynthesizer:
    """See `Synthesizer`. One copy of the weights, a thread that steps the model, one that decodes and one for whole clips, many
    sessions.

    Args:
        model: ``nano``, a hub id or a folder. codec: likewise, where it cannot be told from the model.
        device, dtype: ``auto`` takes the GPU and bfloat16 where there is one, else the CPU and float32.
        codec_dtype: in what the codec's decoder multiplies; ``bfloat16``, on a CPU with AMX, is quicker, with an error of -50 dB.
        kv_dtype: in what the contexts' keys and values are kept; ``auto`` is the model's, ``bfloat16`` beside a float32 model on a CPU
            halves their memory and, where the processor computes in it, the time of attention. The tokens are then no longer those of
            float32, and a context that was kept gives others than one that is read anew.
        weight_dtype: in what the layers' weights are kept; ``auto`` is the model's type, ``int8`` takes half the memory of bfloat16 on a
            GPU, where a step then reads half as much. The tokens are then no longer the model's own.
        max_batch: streams stepped together at most; None is 64 on a GPU, where a step of many takes little longer than one of few, and 16 on a
            CPU. run_ahead_s: audio a consumer may be behind before its stream pauses.
        threads: of the CPU, for the model's steps, half as many for the codec; None leaves one core to the event loop, so that media
            never starve.
        loaded: a model that is loaded already, instead of `model` and of what it would be loaded with.
    """

    def __init__(
        self,
        model: str = "nano",
        *,
        codec: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        codec_dtype: str = "float32",
        kv_dtype: str = "auto",
        weight_dtype: str = "auto",
        max_batch: int | None = None,
        run_ahead_s: float = 10.0,
        threads: int | None = None,
        guards: Guards | None = None,
        loaded: Loaded | None = None,
        **pool: Any,
    ) -> None:
        self._model_name = model
        self._codec_dtype = codec_dtype
        if loaded is not None and weight_dtype != "auto":
            raise SettingsError(
                f"weight_dtype {weight_dtype!r} is for a model that is yet to be loaded; give it to what loads this one"
            )
        self._load_options: dict[str, Any] = {
            "codec": codec,
            "device": device,
            "dtype": dtype,
            "weight_dtype": weight_dtype,
        }
        self._pool_options: dict[str, Any] = {"kv_dtype": kv_dtype, **pool}
        self._max_batch = max_batch
        self._scheduler = Scheduler(run_ahead_s=run_ahead_s)
        self._threads = threads if threads is not None else max(1, (os.cpu_count() or 2) - 1)
        self._guards = guards or Guards()
        self._loaded = loaded
        self._info: EngineInfo | None = None
        self._worker: Worker | None = None
        self._sound: DecodeThread | None = None
        self._listening: dict[str, _Listening] = {}
        self._starting: asyncio.Task[None] | None = None
        """One for all who start it, and for none of them alone: who no longer waits does not end it."""
        self._codec_lock = asyncio.Lock()
        self._clips: ThreadPoolExecutor | None = None
        """The thread that takes whole clips through the codec."""
        self._closed = False
        self._rows: OrderedDict[int, tuple[Exchange | VoicePrompt, Rows]] = OrderedDict()

    # Life

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineClosedError("the engine has not been started; await start() first")
        return self._info

    @property
    def failure(self) -> EngineDiedError | None:
        """Why this engine speaks nothing more, however long one waits; None while it does. It is for good: create another one."""
        return self._worker.dead if self._worker is not None else None

    async def start(self) -> None:
        if self._closed:
            raise _closed_error()
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start(), name="higgs-voice start")
            self._starting.add_done_callback(self._started)
        await asyncio.shield(self._starting)

    def _started(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._starting = None  # the next start tries again

    async def _start(self) -> None:
        parts = await asyncio.to_thread(self._load)
        if self._closed:
            parts.worker.shutdown()
            raise _closed_error()
        try:
            self._take(parts)
            await self._warm_up()
            if self._closed:
                raise _closed_error()
        except BaseException:
            await self._shut_down()
            raise

    def _load(self) -> _Parts:
        """On a thread of its own. It starts nothing, since what it returns may not be wanted any more."""
        loaded = self._loaded or load(self._model_name, **self._load_options)
        on_cpu = loaded.device.type == "cpu"
        scheduler = replace(self._scheduler, max_batch=self._max_batch or (CPU_BATCH if on_cpu else GPU_BATCH))
        if on_cpu:  # where a step takes longer the more streams it has, and the codec's pieces slow it
            scheduler = replace(
                scheduler, comfortable_s=COMFORTABLE_S, unhurried_s=AMPLE_S, ample_s=AMPLE_S, scarce_ticks=None
            )
        decoder = Decoder(loaded.codec, dtype=self._codec_dtype)
        runner = Runner(loaded, **self._pool_options)
        wait_for(loaded.device)  # other streams than this thread's are about to read the weights
        return _Parts(
            loaded=loaded,
            scheduler=scheduler,
            builder=PromptBuilder(loaded.tokenizer, loaded.model.config),
            decoder=decoder,
            encoder=Encoder(loaded.codec),
            worker=Worker(runner, scheduler, self._deliver, threads=self._threads),
            sound=DecodeThread(
                decoder, loaded.device, threads=max(1, self._threads // 2), max_batch=scheduler.max_batch
            ),
        )

    def _take(self, parts: _Parts) -> None:
        """Begin to serve with what was loaded."""
        self._loaded, self._scheduler = parts.loaded, parts.scheduler
        self._builder, self._decoder, self._encoder = parts.builder, parts.decoder, parts.encoder
        self._worker, self._sound = parts.worker, parts.sound
        device = parts.loaded.device
        self._clips = ThreadPoolExecutor(1, "higgs-voice clips", initializer=partial(_on_own_stream, device))
        self._worker.start()
        self._sound.start()
        self._info = EngineInfo(
            model=parts.loaded.name,
            sample_rate=SAMPLE_RATE,
            frame_rate=FRAME_RATE,
            num_codebooks=self._builder.num_codebooks,
            codebook_size=parts.loaded.limits.codebook_size,
            max_positions=parts.loaded.limits.max_positions,
            codec_fingerprint=self._decoder.fingerprint,
            continues=True,
        )

    async def _warm_up(self) -> None:
        """One short chunk, so that the first caller does not pay for what happens only once."""
        request = SpeakRequest(
            session_id="warm-up",
            speech_id="warm-up",
            context=ContextSpec(),
            text="Hello.",
            sampling=Sampling(seed=0, max_new_tokens=40),
        )
        async for _ in self.speak(request):
            pass
        self.close_session("warm-up")

    async def aclose(self) -> None:
        """See `Synthesizer`. It does not wait for a model that is being loaded: that is let go of as soon as it is there."""
        self._closed = True
        await self._shut_down()

    async def _shut_down(self) -> None:
        worker, self._worker = self._worker, None
        sound, self._sound = self._sound, None
        clips, self._clips = self._clips, None
        if clips is not None:
            clips.shutdown(wait=False)  # what is asked for already is answered
        if worker is not None:
            await asyncio.to_thread(worker.shutdown)
        if sound is not None:
            await asyncio.to_thread(sound.shutdown)

    # Speaking

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        worker = self._running()
        heard = min(request.heard // HOP, request.spoken_frames) if request.pcm else 0
        channel = _Channel(asyncio.get_running_loop(), heard * HOP)
        sound = self._sound if request.pcm else None
        listening = self._listening.setdefault(request.session_id, _Listening())
        decode = self._decoder.open(request.spoken, heard)
        stream = _Stream(
            channel, self._guards, decode, sound, listening, self.info.num_codebooks, spoken=request.spoken_frames
        )
        job = self._job(request, stream)
        stream.job = job
        worker.submit(job)
        try:
            while True:
                event = await channel.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, FinishedEvent):
                    worker.leave(job)  # where the sound ended it, the model has not
                    yield event
                    return
                worker.wake()
                yield event
        finally:
            stream.closed = True
            stream.job = None  # each has the other, and through them the engine's memory
            worker.leave(job)

    def _job(self, request: SpeakRequest, stream: _Stream) -> Job:
        prefix = self._prefix_rows(request.context.voice)
        rows = Rows.concat([self._context_rows(request.context), self._builder.opening(request.text)])
        spoken = request.spoken_frames
        room = self.info.max_positions - len(rows)
        if room < self._builder.num_codebooks + self._guards.min_frames:  # the rows of the shortest chunk that is one
            raise EngineError(
                f"the context and the text take {len(rows)} of the model's {self.info.max_positions} rows, which leaves no room to "
                "speak; use shorter reference clips or a smaller window"
            )
        if spoken >= room:
            raise EngineError(
                f"{spoken} frames of the chunk are spoken already, and the model has room for {room} rows"
            )
        if request.spoken is not None:
            rows += self._builder.begun(request.spoken)
        guards = self._guards
        return Job(
            key=request.speech_id,
            session=request.session_id,
            rows=rows,
            prefix=len(prefix),
            sampling=request.sampling.replace(max_new_tokens=min(request.sampling.max_new_tokens, room)),
            seed=request.sampling.seed
            if request.sampling.seed is not None
            else int.from_bytes(os.urandom(4), "little"),
            max_frames=guards.max_frames(request.text),
            min_frames=guards.min_frames,
            retries=guards.retries,
            listener=stream,
            spoken=request.spoken,
            next_rows=self._context_rows(request.next_context) if request.next_context is not None else None,
        )

    def stop(self, speech_id: str) -> None:
        if self._worker is not None:
            self._worker.stop(speech_id)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        if self._worker is not None and len(rows := self._context_rows(context)) < self.info.max_positions:
            self._worker.prepare(session_id, rows, len(self._prefix_rows(context.voice)))

    def close_session(self, session_id: str) -> None:
        self._listening.pop(session_id, None)
        if self._worker is not None:
            self._worker.close_session(session_id)

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        self._running()
        return await self._through_codec(self._encoder.encode, pcm)

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        self._running()
        return await self._through_codec(self._decoder.decode, codes)

    async def _through_codec(self, work: Callable[[_Given], _Made], given: _Given) -> _Made:
        """One whole clip after another. Who no longer waits leaves its own to the end of it, and others then wait for that."""
        async with self._codec_lock:
            self._running()  # it may have been closed meanwhile
            return await asyncio.get_running_loop().run_in_executor(self._clips, work, given)

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        rows = len(self._prefix_rows(context.voice)) + sum(len(self._exchange_rows(item)) for item in context.exchanges)
        return rows + (len(self._builder.opening(text)) if text else 0)

    @property
    def steps(self) -> int:
        """Steps the model has taken, over all sessions."""
        return self._worker.steps if self._worker is not None else 0

    @property
    def active(self) -> int:
        """Streams being generated or waiting."""
        return self._worker.active if self._worker is not None else 0

    @property
    def kv_bytes(self) -> int:
        """Memory that contexts hold: of open sessions, and of the voices whose prefix is kept for the next ones."""
        pool = self._worker.pool if self._worker is not None else None
        return (pool.max_rows - pool.free_rows) * pool.shape.bytes_per_row if pool is not None else 0

    @property
    def free_rows(self) -> int:
        """Rows of context that there is still memory for."""
        return self._worker.pool.free_rows if self._worker is not None else 0

    @property
    def capacity(self) -> float | None:
        """Streams that this engine can speak at once without gaps, by what its recent steps took; None until it is known."""
        if self._worker is None or self._sound is None:
            return None
        steps = self._worker.pace.capacity(self._scheduler.max_batch)
        sound = self._sound.capacity
        return min(steps, sound) if steps is not None and sound is not None else steps

    # Inside

    def _running(self) -> Worker:
        if self._worker is None:
            raise EngineClosedError(
                "the engine is not running; await start() first" if not self._closed else "this engine is closed"
            )
        return self._worker

    def _deliver(self, moved: Sequence[tuple[Job, NDArray[np.int16]]]) -> None:
        """On the worker's thread: frames of one step."""
        for job, codes in moved:
            stream = job.listener
            assert isinstance(stream, _Stream)
            if stream.closed:
                job.stopped = True  # the sound ended it
            else:
                stream.push(codes)

    def _context_rows(self, context: ContextSpec) -> Rows:
        return Rows.concat(
            [self._prefix_rows(context.voice), *(self._exchange_rows(item) for item in context.exchanges)]
        )

    def _prefix_rows(self, voice: VoicePrompt) -> Rows:
        found = self._rows.get(id(voice))
        if found is not None and found[0] is voice:
            return found[1]
        references = [(item.text, item.codes) for item in voice.references]
        rows = self._builder.prefix(
            voice.system, voice.scene, voice.speakers, references, in_scene=voice.references_in_scene
        )
        return self._remember(voice, rows)

    def _exchange_rows(self, exchange: Exchange) -> Rows:
        found = self._rows.get(id(exchange))
        if found is not None and found[0] is exchange:
            return found[1]
        return self._remember(exchange, self._builder.exchange(exchange.text, exchange.codes))

    def _remember(self, item: Exchange | VoicePrompt, rows: Rows) -> Rows:
        self._rows[id(item)] = (item, rows)
        while len(self._rows) > 512:
            self._rows.popitem(last=False)
        return rows


def _on_own_stream(device: torch.device) -> None:
    """Begins a thread that takes clips through the codec on a GPU: beside the model's steps, not between them."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(clips_stream(device))


def _closed_error() -> EngineClosedError:
    return EngineClosedError("this engine is closed; create another one")


__all__ = ["Guards", "LocalSynthesizer"]
