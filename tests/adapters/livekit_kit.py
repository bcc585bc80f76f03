"""What the tests of the LiveKit plugin share: an output that plays, an LLM with a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, llm, tts
from livekit.agents.voice import io
from livekit.plugins import higgs

CONN = APIConnectOptions(max_retry=3, retry_interval=0.05, timeout=5.0)


class Speaker(io.AudioOutput):
    """Plays what it is given at the pace of the loop's clock, as a room's output does, and can pause."""

    def __init__(self, *, sample_rate: int | None = 24000) -> None:
        super().__init__(label="Speaker", capabilities=io.AudioOutputCapabilities(pause=True), sample_rate=sample_rate)
        self.frames: list[rtc.AudioFrame] = []
        self.played: list[tuple[float, bool]] = []
        """Position and whether it was interrupted, of every segment."""
        self.max_ahead_s = 0.0
        self._given = 0.0
        self._began: float | None = None
        self._paused: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushed = False

    @property
    def position(self) -> float:
        if self._began is None:
            return 0.0
        now = self._paused if self._paused is not None else asyncio.get_running_loop().time()
        return min(now - self._began, self._given)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self.frames.append(frame)
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
            self._given = 0.0
            self._flushed = False
            self.on_playback_started(created_at=self._began)
        elif self._paused is None and loop.time() - self._began > self._given:
            self._began = loop.time() - self._given  # it ran dry and goes on now
        self._given += frame.duration
        self.max_ahead_s = max(self.max_ahead_s, self._given - self.position)

    def flush(self) -> None:
        super().flush()
        if self._began is not None and not self._flushed:
            self._flushed = True
            self._arm()

    def clear_buffer(self) -> None:
        if self._began is not None:
            self._end(interrupted=True)

    def pause(self) -> None:
        super().pause()
        if self._paused is None:
            self._paused = asyncio.get_running_loop().time()
            if self._timer is not None:
                self._timer.cancel()

    def resume(self) -> None:
        super().resume()
        if self._paused is not None:
            if self._began is not None:
                self._began += asyncio.get_running_loop().time() - self._paused
            self._paused = None
            if self._flushed:
                self._arm()

    def _arm(self) -> None:
        if self._paused is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._given - self.position, lambda: self._end(interrupted=False))

    def _end(self, *, interrupted: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        position = self.position
        self._began = None
        self._flushed = False
        self.played.append((position, interrupted))
        self.on_playback_progressed(started_at=0.0, offset=0.0, duration=position)
        self.on_playback_finished(playback_position=position, interrupted=interrupted)


@asynccontextmanager
async def calling(voice: tts.TTS[Any], *, attach: bool = True, rate: int = 24000) -> AsyncGenerator[AgentSession[Any]]:
    """A session with a `Speaker` and without ears, whose first agent speaks with `voice`."""
    session: AgentSession[Any] = AgentSession()
    session.output.audio = Speaker(sample_rate=rate)
    await session.start(Agent(instructions="Be brief.", tts=voice))
    if attach:
        higgs.attach(session)
    try:
        yield session
    finally:
        await session.aclose()


async def hand_over(session: AgentSession[Any], voice: tts.TTS[Any]) -> None:
    """The next agent, who speaks with `voice`."""
    agent = Agent(instructions="Be brief.", tts=voice)
    session.update_agent(agent)
    while session.current_agent is not agent or session._activity is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


class Script(llm.LLM):
    """Answers from a list, in order, some characters at a time."""

    def __init__(self, *answers: str, delay: float = 0.01, step: int = 7) -> None:
        super().__init__()
        self.answers = list(answers)
        self.delay = delay
        self.step = step

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = CONN,
        **_: Any,
    ) -> llm.LLMStream:
        return _Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _Answer(llm.LLMStream):
    async def _run(self) -> None:
        script = self._llm
        assert isinstance(script, Script)
        text = script.answers.pop(0)
        for start in range(0, len(text), script.step):
            await asyncio.sleep(script.delay)
            delta = llm.ChoiceDelta(role="assistant", content=text[start : start + script.step])
            self._event_ch.send_nowait(llm.ChatChunk(id="answer", delta=delta))
