"""boson_multimodal's engine on this side of its process; what is on the other side is `make parity`'s."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from higgs_voice.backends.boson import BosonSynthesizer
from higgs_voice.backends.guards import Guards
from higgs_voice.conversation.synthesizer import FinishedEvent, FinishReason, SpeakRequest, SpeechEvent
from higgs_voice.errors import DependencyError
from tests.backends.conformance import collect, finish, request


class Collapsing:
    """A line on which every chunk ends with its first frame. It knows of a chunk only while it speaks it."""

    def __init__(self) -> None:
        self.seeds: list[int | None] = []
        self.drawn_at: list[float | None] = []
        self.when_ended: Callable[[], None] = lambda: None

    async def speak(self, asked: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        self.seeds.append(asked.sampling.seed)
        self.drawn_at.append(asked.sampling.temperature)
        try:
            yield FinishedEvent(FinishReason.EOS, 0)
        finally:
            self.when_ended()

    def stop(self, speech_id: str) -> None:
        """Nothing is spoken when it comes."""

    def close_session(self, session_id: str) -> None:
        """Likewise."""


def engine_on(line: Collapsing) -> BosonSynthesizer:
    engine: Any = BosonSynthesizer("nano", guards=Guards(retries=2))
    engine._line, engine._decoder = line, SimpleNamespace(num_codebooks=8)
    return engine


async def test_a_chunk_that_collapses_is_tried_with_other_seeds() -> None:
    line = Collapsing()
    events = await collect(engine_on(line), replace(request(seed=7), pcm=False))
    assert line.seeds == [7, 8, 9]
    assert line.drawn_at == [None, 0.7, 0.7]  # near greedy, it would draw the same again
    assert finish(events).reason is FinishReason.COLLAPSE


@pytest.mark.parametrize("whole_session", [False, True])
async def test_a_stop_between_two_seeds_holds(whole_session: bool) -> None:
    line = Collapsing()
    engine = engine_on(line)
    asked = replace(request(seed=7), pcm=False)
    line.when_ended = lambda: engine.close_session(asked.session_id) if whole_session else engine.stop(asked.speech_id)
    events = await collect(engine, asked)
    assert line.seeds == [7]
    assert [type(event) for event in events] == [FinishedEvent]
    assert (finish(events).reason, finish(events).frames) == (FinishReason.STOPPED, 0)
    # What is asked afterwards is not stopped, even under the same names; neither is what somebody else says.
    line.when_ended = lambda: (engine.close_session("another"), engine.stop("another"), None)[-1]
    line.seeds.clear()
    assert finish(await collect(engine, asked)).reason is FinishReason.COLLAPSE
    assert line.seeds == [7, 8, 9]
    engine.stop(asked.speech_id)  # nothing is spoken: nothing is remembered
    assert finish(await collect(engine, asked)).reason is FinishReason.COLLAPSE


async def test_an_environment_without_the_package_is_said_with_what_to_install() -> None:
    engine = BosonSynthesizer("nano", python=sys.executable)
    with pytest.raises(
        DependencyError, match=r"^this part of higgs-voice runs where boson_multimodal is installed, .* `make boson`"
    ):
        await engine.start()
    await engine.aclose()


async def test_what_the_child_prints_before_its_answer_is_not_taken_for_it() -> None:
    lines = asyncio.StreamReader()
    lines.feed_data(b"Flash attention is not available\n42\n\xff\n" + b'{"port": 7}\n')
    engine: Any = BosonSynthesizer("nano")
    assert await engine._answer(lines) == {"port": 7}
    lines.feed_eof()
    assert await engine._answer(lines) is None
    assert "Flash attention is not available" in engine._last_words
