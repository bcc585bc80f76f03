"""An engine that passes everything on: what listens to an engine's requests and events is built upon it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np
from numpy.typing import NDArray

from .synthesizer import Codes, ContextSpec, EngineInfo, SpeakRequest, SpeechEvent, Synthesizer


class Passing:
    """A `Synthesizer` on another one, which stays its owner's: closing this one closes nothing."""

    def __init__(self, engine: Synthesizer) -> None:
        self._engine = engine

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> None:
        await self._engine.start()

    async def aclose(self) -> None:
        """The engine is its owner's."""

    def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        return self._engine.speak(request)

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
