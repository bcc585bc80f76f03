"""One engine server, killed in mid-sentence and started again on its port. Run by `make test-livekit`."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest

from tests.e2e.livekit_room import GREETING, LONG, greeted, made
from tests.e2e.livekit_stage import Caller, Stage, agreement, inserted, kill

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    with Stage(tmp_path_factory.mktemp("restart"), spare=False).running() as stage:
        yield stage


async def test_an_engine_that_is_back_before_the_sound_runs_out_is_not_missed(stage: Stage) -> None:
    async with Caller(stage, "soon") as caller:
        await greeted(caller)
        before = await caller.memory()
        text = " ".join([LONG] * 3)  # longer than what is generated ahead
        since = len(caller.heard)
        await caller.send(f"say: {text}")
        start = await caller.until_audible(since)
        await asyncio.sleep(1.0)
        assert stage.engine is not None
        kill(stage.engine)
        await asyncio.to_thread(stage.start_engine)  # knows nothing of this voice
        stop = await caller.until_quiet(start)
        heard = caller.samples(start, stop)
        memory = await caller.memory()
        chunks = [item["text"] for item in memory["exchanges"]][len(GREETING) :]
        assert " ".join(chunks) == text
        sound = made(*chunks)
        assert all(seconds < 1.0 for _, seconds in inserted(heard, sound))  # nothing is said twice
        assert len(heard) / 24000 > len(sound) / 24000 - 0.5
        assert agreement(heard, sound) > 0.65
        assert caller.longest_gap_s(start, stop - 1) <= caller.worst_gap_s(start, stop)
        assert memory["session"] == before["session"]
        assert memory["provisional"] == 0
        assert stage.load()["sessions"] == 1  # the voice was built again there


async def test_an_engine_that_stays_away_costs_the_rest_of_the_turn_and_not_the_call(stage: Stage) -> None:
    async with Caller(stage, "late") as caller:
        await greeted(caller)
        before = await caller.memory()
        text = " ".join([LONG] * 3)
        since = len(caller.heard)
        await caller.send(f"say: {text}")
        start = await caller.until_audible(since)
        await asyncio.sleep(1.0)
        assert stage.engine is not None
        kill(stage.engine)
        # What was generated is still played; then nobody is there, for longer than the plugin waits.
        stop = await caller.until_quiet(start, 3.0)
        heard_s = (stop - start) / 100
        assert 5 < heard_s < 20
        await asyncio.to_thread(stage.start_engine)
        since = len(caller.heard)
        await caller.send("say: Sorry, I was gone for a moment.")
        start = await caller.until_audible(since)
        stop = await caller.until_quiet(start)
        assert agreement(caller.samples(start, stop), made("Sorry, I was gone for a moment.")) > 0.65
        memory = await caller.memory()
        *kept, last = memory["exchanges"][len(GREETING) :]
        assert last["text"] == "Sorry, I was gone for a moment."
        assert text.startswith(" ".join(item["text"] for item in kept))
        assert sum(item["seconds"] for item in kept) == pytest.approx(heard_s, abs=0.25)
        assert memory["session"] == before["session"]
        assert memory["provisional"] == 0
