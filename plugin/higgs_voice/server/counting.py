"""An engine whose chunks are counted: what HTTP requests are spoken on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ..conversation.passing import Passing
from ..conversation.synthesizer import FinishedEvent, FinishReason, SpeakRequest, SpeechEvent, Synthesizer
from .metrics import Metrics


class Counted(Passing):
    """The engine, with the chunks asked of it in the metrics as those of websockets are, but for two: the work for a second of
    sound would hold how long the caller took to listen, and nobody knows when what was sent over HTTP is played."""

    def __init__(self, engine: Synthesizer, metrics: Metrics, clock: Callable[[], float]) -> None:
        super().__init__(engine)
        self._metrics = metrics
        self._clock = clock

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        metrics, asked = self._metrics, self._clock()
        heard = ended = False
        try:
            async with aclosing(super().speak(request)) as events:
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
            if not ended:
                metrics.chunks.labels("error").inc()
            raise
