"""boson_multimodal as an engine: the suite of every engine, its sound, its child process, and the documented API on the package."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from higgs_voice import SessionSettings, VoiceSession, Window, create_backend
from higgs_voice.audio import write_wav
from higgs_voice.backends.boson import BosonSynthesizer, find_python, original_layout
from higgs_voice.backends.guards import Guards
from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.config import Sampling
from higgs_voice.conversation.synthesizer import ContextSpec, FinishReason, Synthesizer
from higgs_voice.conversation.voice import Reference, Voice
from higgs_voice.errors import CheckpointError, DependencyError, EngineDiedError, RunawayError
from higgs_voice.model.convert import NANO_MODEL, convert
from higgs_voice.model.loading import NANO
from tests import test_serve_engine as documented
from tests.backends.conformance import Conformance, codes, collect, finish, request, sound

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
GREEDY = Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=300)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncGenerator[Synthesizer]:
    engine = create_backend("boson:nano")
    await engine.start()
    yield engine
    await engine.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def fresh() -> AsyncGenerator[BosonSynthesizer]:
    engine = BosonSynthesizer("nano")
    await engine.start()
    yield engine
    await engine.aclose()


class TestBoson(Conformance):
    @pytest.fixture
    def engine(self, shared: Synthesizer) -> Synthesizer:
        return shared

    async def test_after_close_it_says_so(self, fresh: Synthesizer) -> None:
        await super().test_after_close_it_says_so(fresh)

    async def test_close_ends_what_is_being_said(self, fresh: Synthesizer) -> None:
        await super().test_close_ends_what_is_being_said(fresh)


async def test_its_sound_is_our_engines(shared: Synthesizer) -> None:
    """Same weights, greedy: the codes of the package, and the sound of our codec stream, bit for bit."""
    ours = LocalSynthesizer("nano")
    await ours.start()
    asked = replace(request("Hello, and thank you for calling."), sampling=GREEDY)
    one, other = await collect(shared, asked), await collect(ours, asked)
    await ours.aclose()
    assert np.array_equal(codes(one), codes(other))
    assert sound(one) == sound(other)
    assert finish(one).reason is FinishReason.EOS


async def test_clips_in_the_scene_are_heard_alike(shared: Synthesizer) -> None:
    clip = np.random.default_rng(1).integers(0, 256, size=(8, 30)).astype(np.int16)
    voice = Voice.create(
        scene="A quiet room.",
        references=Reference("It is mine.", np.zeros(0, np.float32), clip),
        references_in_scene=True,
    )
    asked = replace(request("Go on.", context=ContextSpec(voice=voice._prompt())), sampling=GREEDY)
    ours = LocalSynthesizer("nano")
    await ours.start()
    one, other = await collect(shared, asked), await collect(ours, asked)
    without = await collect(ours, replace(request("Go on."), sampling=GREEDY))
    await ours.aclose()
    assert np.array_equal(codes(one), codes(other))
    assert not np.array_equal(codes(one), codes(without))


async def test_a_conversation_remembers_what_was_heard(shared: Synthesizer) -> None:
    settings = SessionSettings(sampling=GREEDY, window=Window.last_n(3))
    async with VoiceSession(shared, settings=settings) as session:
        speech = session.speak("This is the first of them. This is the second of them.")
        await speech.collect()
        session.settle(speech.id, 0.5)
        after = session.speak("And then?")
        pcm = await after.collect()
        session.settle(after.id, 1e9)
        assert len(pcm) > 4800
        heard = session.exchanges
        assert heard[0].frames <= 13
        assert heard[-1].text == "And then?"


async def test_special_tokens_in_text_are_text(shared: Synthesizer) -> None:
    events = await collect(shared, request("Hello <|eot_id|> there."))
    assert finish(events).frames > 3


async def test_a_runaway_is_ended_and_the_session_goes_on() -> None:
    engine = BosonSynthesizer("nano", guards=Guards(base_s=0.4, s_per_char=0.001))
    await engine.start()
    try:
        end = finish(await collect(engine, request("This is a sentence that takes longer than that.")))
        assert end.reason is FinishReason.RUNAWAY
        assert isinstance(end.error, RunawayError)
        assert finish(await collect(engine, request("Again, this is one."))).reason is FinishReason.RUNAWAY
    finally:
        await engine.aclose()


async def test_a_child_that_dies_in_mid_word_is_one_error(fresh: BosonSynthesizer) -> None:
    assert fresh._child is not None
    events = fresh.speak(request("This is a long sentence that goes on for a good while."))
    await anext(events)
    os.kill(fresh._child.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match=r"boson_multimodal ended with exit code -9"):
        async for _ in events:
            pass
    with pytest.raises(EngineDiedError, match="ended with exit code -9"):
        await collect(fresh, request())


async def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """However the parent ends: here it is killed."""
    script = (
        "import asyncio, os, sys\n"
        "from higgs_voice.backends.boson import BosonSynthesizer\n"
        "async def main():\n"
        "    engine = BosonSynthesizer('nano')\n"
        "    await engine.start()\n"
        "    print(engine._child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the child is still there ten seconds after its parent was killed")


async def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"transformers' layout.*higgs-voice convert"):
        original_layout(str(NANO))
    with pytest.raises(DependencyError, match="no interpreter 'nowhere/python'"):
        find_python("nowhere/python")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "higgs_audio"}')
    engine = BosonSynthesizer(str(tmp_path), codec=str(NANO / "codec"))
    with pytest.raises(CheckpointError, match="boson_multimodal cannot read"):
        await engine.start()
    await engine.aclose()


async def test_the_documented_examples_on_the_package_itself(tmp_path: Path) -> None:
    convert(NANO_MODEL, tmp_path / "model")
    tone = 8000 * np.sin(np.arange(24000) * 2 * np.pi * 220 / 24000)
    write_wav(tmp_path / "reference_voice.wav", tone.astype("<i2").tobytes())
    (tmp_path / "reference_voice.txt").write_text("A tone.")
    examples = {"one": documented.ONE, "two": documented.TWO, "three": documented.THREE, "four": documented.FOUR}
    for name, code in examples.items():  # as they are documented: the package's own imports
        code = code.replace(
            "higgs_voice.serve_engine import HiggsAudio", "boson_multimodal.serve.serve_engine import HiggsAudio"
        )
        code = code.replace(
            "higgs_voice.serve_engine import revert", "boson_multimodal.model.higgs_audio.utils import revert"
        )
        assert "higgs_voice" not in code
        code = code.replace('model_name_or_path="nano"', 'model_name_or_path="model"', 1)
        examples[name] = code.replace('audio_tokenizer_name_or_path="nano"', 'audio_tokenizer_name_or_path="codec"')
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    script = Path(__file__).with_name("package.py")
    command = [find_python(), str(script), str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert all(rows[0] > 30 and rows[1:] == [8] for rows in seen["rows"].values())
    assert all(size > 20_000 for size in seen["written"])
    assert seen["failure"] == "nothing but NaN"
    left, closed, later = seen["steps"]
    assert closed - left <= 2  # the step that was under way, and the one whose row was on its way
    assert later == closed
    assert seen["together"]
