"""A chunk that another engine began, on the embedded model: its limits, and what a server counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from higgs_voice.audio import HOP
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.local import Guards, LocalSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.conversation.synthesizer import FinishReason
from higgs_voice.errors import EngineError
from higgs_voice.model.loading import Loaded, load
from higgs_voice.server.app import Server, ServerSettings
from tests.backends.conformance import LONG, audio, codes, collect, finish, request, sound


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("nano", device="cpu", dtype="float32")


@pytest_asyncio.fixture
async def engine(loaded: Loaded) -> AsyncGenerator[LocalSynthesizer]:
    engine = LocalSynthesizer(loaded=loaded, threads=1, guards=Guards(retries=0))
    await engine.start()
    yield engine
    await engine.aclose()


async def test_nothing_but_the_end_is_left(engine: LocalSynthesizer) -> None:
    whole = await collect(engine, request())
    assert finish(whole).reason is FinishReason.EOS
    begun = replace(request(session="t"), spoken=codes(whole), heard=len(sound(whole)) // 2)
    rest = await collect(engine, begun)
    assert not audio(rest)
    assert finish(rest).reason is FinishReason.EOS
    assert finish(rest).frames == finish(whole).frames


async def test_what_was_said_counts_for_the_guard_against_a_runaway(loaded: Loaded) -> None:
    engine = LocalSynthesizer(loaded=loaded, threads=1, guards=Guards(base_s=0.5, s_per_char=0.001))
    await engine.start()
    try:
        whole = await collect(engine, request(LONG))
        assert finish(whole).reason is FinishReason.RUNAWAY
        rest = await collect(engine, replace(request(LONG, session="t"), spoken=codes(whole)[:, :8]))
        assert finish(rest).reason is FinishReason.RUNAWAY
        assert finish(rest).frames == finish(whole).frames
        assert np.array_equal(codes(rest), codes(whole)[:, 8:])
    finally:
        await engine.aclose()


async def test_more_than_there_is_room_for_is_refused(engine: LocalSynthesizer) -> None:
    spoken = np.zeros((8, engine.info.max_positions), dtype=np.int16)
    with pytest.raises(EngineError, match="spoken already"):
        await collect(engine, replace(request(), spoken=spoken))
    assert finish(await collect(engine, request())).frames


async def test_a_server_counts_what_it_spoke_itself() -> None:
    async with Server(FakeSynthesizer(), ServerSettings(port=0)) as server:
        remote = RemoteSynthesizer(server.url)
        await remote.start()
        spoken = server.hub.engine.codes_for(LONG, 100)  # type: ignore[attr-defined]
        rest = await collect(remote, replace(request(LONG), spoken=spoken, heard=90 * HOP))
        await remote.aclose()
        metrics = server.hub.metrics
        assert metrics.audio._value.get() == pytest.approx((finish(rest).frames - 100) / 25)
        assert metrics.underruns._value.get() == 0
