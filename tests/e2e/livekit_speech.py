"""The embedded voice in a real room: what is heard there is what the engine made, to a recogniser too.

Run by `make test-livekit`. The embedded voice says many wrong words, so what the recogniser understands in the room is held
against what it understands of the engine's own sound, not against the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator

import numpy as np
import pytest
from numpy.typing import NDArray

from higgs_voice import create_backend
from higgs_voice.audio import to_int16
from tests.e2e.livekit_stage import Caller, Stage, likeness, phones, shared, voiced, words

pytestmark = pytest.mark.timeout(240)

TURNS = (
    "Is there anything else on your mind today?",
    "There is nothing for you to pay today.",
    "You can follow every step on your phone.",
    "Let me read the main points back to you.",
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    folder = tmp_path_factory.mktemp("speech")
    drawn = {"HIGGS_AGENT_WINDOW": "1", "HIGGS_AGENT_TEMPERATURE": "0.3", "HIGGS_AGENT_SEED": "7"}
    with Stage(folder, model="nano", spare=False, **drawn).running() as stage:
        yield stage


async def test_what_is_heard_is_what_the_engine_made_to_the_ear_and_to_a_recogniser(stage: Stage) -> None:
    engine = create_backend(stage.engine_url)
    heard: list[NDArray[np.int16]] = []
    made: list[NDArray[np.int16]] = []
    async with Caller(stage, "speech") as caller:
        await caller.until_quiet(await caller.until_audible(0, 60.0), 1.0)  # the greeting
        await engine.start()
        try:
            for text in TURNS:
                since = len(caller.heard)
                await caller.send(f"say: {text}")
                start = await caller.until_audible(since)
                stop = await caller.until_quiet(start, 1.0)
                heard.append(caller.samples(start, stop))
                exchanges = (await caller.memory())["exchanges"]
                assert exchanges[-1]["text"] == text
                made.append(to_int16(await engine.decode(await caller.codes(len(exchanges) - 1))))
        finally:
            await engine.aclose()
    # Where the engine was late, or the voice itself paused, is left out: gaps are held with the engine of tones.
    heard, made = [voiced(sound) for sound in heard], [voiced(sound) for sound in made]
    alike = [likeness(ours, theirs) for ours, theirs in zip(heard, made, strict=True)]
    print(f"spectra alike: {', '.join(f'{value:.2f}' for value in alike)}")
    assert min(alike) > 0.85
    for name, recognised, least in (("phones", phones, 0.6), ("words", words, 0.25)):
        ours, theirs = [recognised(sound) for sound in heard], [recognised(sound) for sound in made]
        same = [shared(one, other) for one, other in zip(ours, theirs, strict=True)]
        others = [shared(ours[one], theirs[other]) for one, other in itertools.permutations(range(len(TURNS)), 2)]
        print(
            f"{name} in common with the engine's own sound {np.mean(same):.2f}, with other turns' {np.mean(others):.2f}"
        )
        assert np.mean(same) > least
        assert np.mean(same) > 2 * np.mean(others)
