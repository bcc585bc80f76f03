"""The engines that ours is measured beside: the same codes, another way to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.bench import bargein
from higgs_voice.bench.baseline import TransformersSynthesizer, baseline
from higgs_voice.cli import app
from higgs_voice.config import Sampling
from higgs_voice.conversation.synthesizer import ContextSpec, Exchange, FinishReason
from higgs_voice.errors import EngineDiedError, SettingsError
from tests.backends.conformance import codes, collect, finish, request, sound

GREEDY = Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=30)


@pytest_asyncio.fixture
async def engine() -> AsyncGenerator[TransformersSynthesizer]:
    engine = TransformersSynthesizer("nano", device="cpu")
    await engine.start()
    yield engine
    await engine.aclose()


async def test_it_says_the_codes_that_ours_says(engine: TransformersSynthesizer) -> None:
    ours = LocalSynthesizer("nano", device="cpu")
    await ours.start()
    before = await collect(ours, replace(request("Hello there.", session="one"), sampling=GREEDY))
    context = ContextSpec(exchanges=(Exchange("Hello there.", codes(before)),))
    for asked in (request("Hello there."), request("Go on.", context=context)):
        one = await collect(engine, replace(asked, sampling=GREEDY))
        other = await collect(ours, replace(asked, session_id="two", sampling=GREEDY))
        np.testing.assert_array_equal(codes(one), codes(other))
        assert sound(one) == sound(other)
        assert finish(one).reason is finish(other).reason is not FinishReason.STOPPED
    await ours.aclose()


async def test_a_stop_and_a_reader_that_leaves_end_it(engine: TransformersSynthesizer) -> None:
    result = await bargein.measure(engine, turns=2, frames=40)
    assert len(result.idle) == 2
    assert result.pcm_after == 0
    assert max(result.steps) <= 2
    events = engine.speak(request())
    async with aclosing(events):
        await anext(events)
    assert engine.active == 0
    assert finish(await collect(engine, request())).frames > 0


async def test_what_breaks_is_one_error(engine: TransformersSynthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._codes is not None

    def broken(*_: object) -> None:
        raise FloatingPointError("nothing but NaN")

    with monkeypatch.context() as patch:
        patch.setattr(engine._codes, "_run", broken)
        with pytest.raises(EngineDiedError, match="transformers failed: FloatingPointError: nothing but NaN"):
            await collect(engine, request())
    assert finish(await collect(engine, request())).frames > 0


def test_a_name_that_is_none_is_one_error() -> None:
    with pytest.raises(SettingsError, match="no baseline 'vllm'; there are: boson, transformers"):
        baseline("vllm", "nano")
    for command in (
        ["bench", "context", "--baseline", "vllm"],
        ["bench", "bargein", "--baseline", "boson", "--random", "3b"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert "baseline" in done.stderr
