"""A pipeline around the service for tests: real aggregators, and a real output transport whose writing the test holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from higgs_voice.adapters.pipecat import HiggsTTSService, PlayoutTracker

logger.disable("pipecat")


class HeldOutput(BaseOutputTransport):
    """The framework's output transport; it writes a chunk (40 ms) when the test lets it, or one every 40 ms."""

    def __init__(self, *, free: bool = True, real_time: bool = True, **params: Any) -> None:
        super().__init__(TransportParams(audio_out_enabled=True, audio_out_end_silence_secs=0, **params))
        self.written: list[bytes] = []
        self.free = free
        self._pause = 0.04 if free and real_time else 0.0
        self._due = 0.0
        self._permits = asyncio.Semaphore(0)
        self.changed = asyncio.Event()

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        if not self.free:
            await self._permits.acquire()
        self.written.append(frame.audio)
        self.changed.set()
        now = time.monotonic()
        # A late loop catches up, as a sound device's buffer lets it; after a pause the clock starts anew.
        self._due = (now if now - self._due > 0.3 else self._due) + self._pause
        await asyncio.sleep(max(self._due - now, 0.0))
        return True

    async def play(self, chunks: int) -> None:
        """Let that many more chunks be written, and wait until they are."""
        target = len(self.written) + chunks
        for _ in range(chunks):
            self._permits.release()
        while len(self.written) < target:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 5)

    def let_go(self) -> None:
        """From now on write what comes."""
        self.free = True
        self._permits.release()  # for the chunk that waits

    def hold(self) -> None:
        self.free = False
        self._permits = asyncio.Semaphore(0)

    @property
    def seconds(self) -> float:
        return sum(map(len, self.written)) / 2 / self.sample_rate


class Tap(FrameProcessor):
    """Keeps what passes."""

    def __init__(self) -> None:
        super().__init__(enable_direct_mode=True)
        self.down: list[Frame] = []
        self.up: list[Frame] = []
        self.changed = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        (self.down if direction == FrameDirection.DOWNSTREAM else self.up).append(frame)
        self.changed.set()
        await self.push_frame(frame, direction)

    def of(self, *kinds: type[Frame]) -> list[Any]:
        return [frame for frame in self.down if isinstance(frame, kinds)]

    @property
    def audio(self) -> bytes:
        return b"".join(frame.audio for frame in self.of(TTSAudioRawFrame))

    async def until(self, ready: Callable[[], bool], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not ready():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Room:
    """A running pipeline: before -> tts -> after_tts -> transport -> tracker? -> assistant -> end."""

    tts: HiggsTTSService
    worker: PipelineWorker
    output: HeldOutput
    context: LLMContext
    before: Tap
    after_tts: Tap
    end: Tap
    heard: list[str] = field(default_factory=list)

    async def say(self, text: str, *, end: bool = True, start: bool = True, size: int = 3) -> None:
        """A turn of an LLM, in pieces of `size` characters."""
        if start:
            await self.worker.queue_frame(LLMFullResponseStartFrame())
        for at in range(0, len(text), size):
            await self.worker.queue_frame(LLMTextFrame(text[at : at + size]))
        if end:
            await self.worker.queue_frame(LLMFullResponseEndFrame())

    async def interrupt(self) -> None:
        """A barge-in; comes back when it has passed the whole pipeline."""
        count = len(self.end.of(InterruptionFrame))
        await self.worker.queue_frame(InterruptionFrame())
        await self.end.until(lambda: len(self.end.of(InterruptionFrame)) > count)
        await settle_loop()

    def transcript(self) -> list[str]:
        return [str(message["content"]) for message in self.context.get_messages() if message["role"] == "assistant"]

    def errors(self) -> list[str]:
        return [frame.error for frame in self.before.up if isinstance(frame, ErrorFrame)]

    async def until(self, ready: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not ready():
                await asyncio.sleep(0.002)

    def held_back(self) -> int:
        """Chunks that have left the service since `forget` and could be played."""
        return sum(len(frame.audio) for frame in self.after_tts.of(TTSAudioRawFrame)) // 1920

    def forget(self) -> None:
        """Keep nothing of what passed."""
        for tap in (self.before, self.after_tts, self.end):
            tap.down.clear()
            tap.up[:] = [frame for frame in tap.up if isinstance(frame, ErrorFrame)]
        self.output.written.clear()


async def settle_loop(turns: int = 50) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


@asynccontextmanager
async def room(
    tts: HiggsTTSService,
    *,
    tracker: bool = True,
    others: Sequence[HiggsTTSService] = (),
    held: bool = False,
    params: PipelineParams | None = None,
    **out: Any,
) -> AsyncIterator[Room]:
    """A running pipeline around the service; with the trackers of `others`, of which a switcher would run one at a time."""
    context = LLMContext()
    pair = LLMContextAggregatorPair(context)
    output = HeldOutput(free=not held, **out)
    before, after_tts, end = Tap(), Tap(), Tap()
    processors: list[FrameProcessor] = [before, tts, after_tts, output]
    processors += [PlayoutTracker(other) for other in others]
    if tracker:
        processors.append(PlayoutTracker(tts))
    worker = PipelineWorker(
        Pipeline([*processors, pair.assistant(), end]),
        cancel_on_idle_timeout=False,
        enable_rtvi=False,
        params=params or PipelineParams(),
    )
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_started(*_: Any) -> None:
        started.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(started.wait(), 20)
        yield Room(tts, worker, output, context, before, after_tts, end)
        output.let_go()
        await worker.queue_frame(EndFrame())
        await asyncio.wait_for(running, 20)
    finally:
        if not running.done():
            await worker.cancel()
            await asyncio.wait_for(running, 20)
