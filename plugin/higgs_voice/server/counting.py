"""An engine whose chunks are counted: what HTTP requests are spoken on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray

from ..conversation.synthesizer import (
    Codes,
    ContextSpec,
    EngineInfo,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
    Synthesizer,
)
from .metrics import Metrics


class Counted:
    """The engine, with the chunks asked of it in the metrics as those of websockets are, but for two: the work for a second of
    sound would hold how long the caller took to listen, and nobody knows when what was sent over HTTP is played."""

    def __init__(self, engine: Synthesizer, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clock = clock

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> None:
        await self._engine.start()

    async def aclose(self) -> None:
        """The engine is others' too."""

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        metrics, asked = self._metrics, self._clock()
        heard = ended = False
        try:
            async with aclosing(self._engine.speak(request)) as events:
                async for event in events:
                    if isinstance(event, FinishedEvent):
                        ended = True
                        metrics.chunks.labels(event.reason.value).inc()
                        metrics.audio.inc(event.frames / self.info.frame_rate)
                    elif event.pcm and not heard:
                        heard = True
                        metrics.ttfa.observe(self._clock() - asked)
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            if not ended:
                metrics.chunks.labels(FinishReason.STOPPED.value).inc()
            raise
        except Exception:
            metrics.chunks.labels("error").inc()
            raise

    def stop(self, speech_id: str) -> None:
        self._engine.stop(speech_id)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        self._engine.prepare(session_id, context)

    def close_session(self, session_id: str) -> None:
        self._engine.close_session(session_id)

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        return await self._engine.encode(pcm)

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        return await self._engine.decode(codes)

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        return self._engine.count_rows(context, text)
