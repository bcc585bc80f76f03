"""A session that comes later than the first text: what is said meanwhile waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipecat.frames.frames import (
    EndFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSUpdateSettingsFrame,
)

from higgs_voice import Voice
from higgs_voice.adapters import engines
from higgs_voice.adapters.pipecat import HiggsTTSService, HiggsTTSSettings
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import Synthesizer
from higgs_voice.errors import (
    ConnectionLostError,
    EngineBusyError,
    EngineClosedError,
    EngineDiedError,
    HiggsVoiceError,
    ModelNotFoundError,
)
from tests.adapters.mortal import Mortal, mortals
from tests.adapters.pipecat_kit import room, settle_loop


class SlowEngine(FakeSynthesizer):
    """Starts when the test lets it."""

    def __init__(self) -> None:
        super().__init__(frames_per_char=0.2)
        self.ready = asyncio.Event()

    async def start(self) -> None:
        await self.ready.wait()


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_voice.adapters.pipecat.SETUP_PATIENCE_S", 0.05)


async def slow_service(
    how: str, monkeypatch: pytest.MonkeyPatch, **kwargs: Any
) -> tuple[HiggsTTSService, asyncio.Event]:
    """A service whose session comes when the event is set."""
    engine = SlowEngine()
    if how == "engine":
        return HiggsTTSService(engine=engine, **kwargs), engine.ready
    if how == "snapshot":
        async with room(HiggsTTSService(engine=FakeSynthesizer())) as r:
            snapshot = r.tts.snapshot()
        return HiggsTTSService(engine=engine, snapshot=snapshot, **kwargs), engine.ready

    async def borrow(model: str) -> Synthesizer:
        await engine.ready.wait()
        if how == "none":
            raise ModelNotFoundError(f"there is no model {model!r}")
        return FakeSynthesizer(frames_per_char=0.2)

    async def give_back(model: str) -> None:
        pass

    monkeypatch.setattr(engines, "borrow", borrow)
    monkeypatch.setattr(engines, "give_back", give_back)
    monkeypatch.setattr(engines, "serves", lambda model, engine: True)
    return HiggsTTSService(model="slow/model", **kwargs), engine.ready


@pytest.mark.parametrize("tracker", [True, False])
@pytest.mark.parametrize("how", ["engine", "borrow", "snapshot"])
async def test_text_waits_for_the_session_and_is_spoken_in_order(
    how: str, tracker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tts, ready = await slow_service(how, monkeypatch)
    async with room(tts, tracker=tracker) as r:
        await r.worker.queue_frame(TTSSpeakFrame("Welcome."))
        for text in ("How are you?", "Well, I hope.", "That is good."):
            await r.say(text)
        await r.until(lambda: len(tts._utterances) == 4)
        with pytest.raises(EngineClosedError, match="still loading"):
            _ = tts.session
        ready.set()
        spoken = "Welcome. How are you? Well, I hope. That is good."
        # Without a tracker the framework may put replies as short as these into one message.
        await r.until(lambda: " ".join(r.transcript()) == spoken)
        assert tts.session.context_text.replace("\n", " ") == spoken
        assert r.errors() == []
        await r.say("And on.")
        await r.until(lambda: "And on." in " ".join(r.transcript()))
        assert len(r.after_tts.of(TTSStoppedFrame)) == 5


async def test_what_waits_is_not_taken_for_a_context_without_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    tts, ready = await slow_service("engine", monkeypatch, stop_frame_timeout_s=0.8)
    async with room(tts) as r:
        await r.say("Hello there.")
        await asyncio.sleep(1.5)
        ready.set()
        await r.until(lambda: bool(r.transcript()))
        assert len(r.after_tts.of(TTSStoppedFrame)) == 1
        assert r.errors() == []


@pytest.mark.parametrize("tracker", [True, False])
async def test_what_waits_can_be_interrupted(tracker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tts, ready = await slow_service("borrow", monkeypatch)
    async with room(tts, tracker=tracker) as r:
        notice = TTSSpeakFrame("This call is recorded.")
        notice.interruptible = False
        await r.worker.queue_frame(notice)
        await r.say("This is cut off. And the rest", end=False)
        await r.until(lambda: len(tts._utterances) == 2)
        await r.interrupt()
        ready.set()
        await r.say("This is new.")
        await r.until(lambda: "new" in " ".join(r.transcript()))
        assert tts.session.context_text == "This call is recorded.\nThis is new."
        assert " ".join(r.transcript()) == "This call is recorded. This is new."
        engine = tts.session.engine
        assert isinstance(engine, FakeSynthesizer)
        assert [request.text for request in engine.requests] == tts.session.context_text.split("\n")
        assert r.errors() == []


@pytest.mark.parametrize("tracker", [True, False])
async def test_an_opening_that_fails_is_said_once(tracker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tts, ready = await slow_service("none", monkeypatch)
    async with room(tts, tracker=tracker) as r:
        await r.worker.queue_frame(TTSSpeakFrame("Welcome."))
        for text in ("How are you?", "Well, I hope.", "That is good."):
            await r.say(text)
        await r.until(lambda: len(tts._utterances) == 4)
        ready.set()
        await r.until(lambda: not tts.get_audio_contexts())
        await r.say("Nobody says this.")
        await settle_loop()
        assert r.errors() == ["Higgs cannot speak: there is no model 'slow/model'"]
        assert not tts.is_usable
        assert r.end.of(TTSAudioRawFrame) == []
        assert r.transcript() == []


@pytest.mark.parametrize("error", [ConnectionLostError("nobody answers"), EngineBusyError("all seats are taken")])
async def test_an_engine_that_is_away_when_the_call_begins_is_tried_again(
    error: HiggsVoiceError, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    async def borrow(model: str) -> Synthesizer:
        if away:
            raise error
        return FakeSynthesizer()

    async def give_back(model: str) -> None: ...

    monkeypatch.setattr(engines, "borrow", borrow)
    monkeypatch.setattr(engines, "give_back", give_back)
    async with room(HiggsTTSService(model="ws://127.0.0.1:1")) as r:
        await r.say("Nobody hears this.")
        await r.until(lambda: any(str(error) in said for said in r.errors()))
        assert r.tts.is_usable
        await r.until(lambda: not r.tts.get_audio_contexts())
        away = False
        await r.say("But this.")
        await r.until(lambda: "But this." in " ".join(r.transcript()))
        assert "Nobody" not in " ".join(r.transcript())


async def test_settings_wait_for_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    tts, ready = await slow_service("borrow", monkeypatch)
    async with room(tts) as r:
        await r.worker.queue_frame(
            TTSUpdateSettingsFrame(delta=HiggsTTSSettings(speakers="masculine", temperature=0.5))
        )
        await r.say("Hello.")
        await settle_loop()
        ready.set()
        await r.until(lambda: bool(r.transcript()))
        engine = tts.session.engine
        assert isinstance(engine, FakeSynthesizer)
        assert engine.requests[0].context.voice.speakers == ("SPEAKER0: masculine",)
        assert engine.requests[0].sampling.temperature == 0.5
        assert r.errors() == []


async def test_the_end_waits_for_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    tts, ready = await slow_service("borrow", monkeypatch)
    async with room(tts) as r:
        await r.say("Goodbye.")
        await r.worker.queue_frame(EndFrame())
        await r.until(lambda: bool(tts._utterances))
        ready.set()
    assert len(r.output.written) > 0
    assert r.transcript() == ["Goodbye."]


async def test_a_call_that_ends_before_its_session_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = asyncio.all_tasks()
    tts, _ = await slow_service("engine", monkeypatch)
    async with room(tts) as r:
        await r.say("Hello?")
        await r.until(lambda: bool(tts._utterances))
        await r.worker.cancel()
        await r.until(lambda: r.worker.has_finished())
    await settle_loop()
    assert not {task.get_name() for task in asyncio.all_tasks() - before}


# An engine that dies in the middle of the call


@pytest.mark.parametrize("tracker", [True, False])
async def test_a_call_outlives_its_engine(tracker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mortals(monkeypatch)
    tts = HiggsTTSService(
        model="nano", voice=Voice.create(scene="A quiet room."), settings=HiggsTTSSettings(temperature=0.5)
    )
    async with room(tts, tracker=tracker) as r:
        await r.say("Good morning to you.")
        await r.until(lambda: len(r.transcript()) == 1)
        made[0].failure = EngineDiedError("oh")
        await r.say("This is still said.")
        await r.until(lambda: len(r.transcript()) == 2)
        await r.say("And this.")
        await r.until(lambda: len(r.transcript()) == 3)
        assert r.transcript() == ["Good morning to you.", "This is still said.", "And this."]
        assert r.errors() == []
        assert [engine.closed for engine in made] == [True, False]
        assert [item.text for item in made[1].requests] == ["This is still said.", "And this."]
        request = made[1].requests[0]
        assert [item.text for item in request.context.exchanges] == ["Good morning to you."]
        assert request.context.voice.scene == "A quiet room."
        assert request.sampling.temperature == 0.5
        await r.until(lambda: len(tts.session.exchanges) == 3)
        assert tts.session.context_text.replace("\n", " ") == " ".join(r.transcript())
    assert made[1].closed


async def test_what_was_playing_when_the_engine_died_is_not_told_to_the_next_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = mortals(monkeypatch)
    tts = HiggsTTSService(model="nano")
    async with room(tts, held=True) as r:
        await r.say("One two three four five six seven eight nine ten.")
        await r.output.play(20)
        made[0].failure = EngineDiedError("oh")
        await r.say("Something else.")
        await r.until(lambda: len(made) == 2 and bool(made[1].requests))
        (before,) = made[1].requests[0].context.exchanges
        assert "One two".startswith(before.text[:7])
        assert not before.text.endswith("ten.")
        r.output.let_go()
        await r.until(lambda: "Something else." in " ".join(r.transcript()))
        assert tts.session.context_text == f"{before.text}\nSomething else."
        assert r.errors() == []


async def test_no_other_engine_is_said_each_time_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mortals(monkeypatch)
    create, refused = engines.create_backend, True

    def sometimes(model: str) -> Synthesizer:
        if made and refused:
            raise ModelNotFoundError("the folder is gone")
        return create(model)

    monkeypatch.setattr(engines, "create_backend", sometimes)
    tts = HiggsTTSService(model="nano")
    async with room(tts) as r:
        await r.say("Good morning.")
        await r.until(lambda: len(r.transcript()) == 1)
        made[0].failure = EngineDiedError("oh")
        said = "Higgs could not speak: HiggsTTSService has no engine: the folder is gone"
        for count in (1, 2):
            await r.say("Nobody says this.")
            await r.until(lambda count=count: r.errors().count(said) == count)
            await r.until(lambda: not tts.get_audio_contexts())
        assert tts.is_usable
        refused = False
        await r.say("But this.")
        await r.until(lambda: "But this." in " ".join(r.transcript()))
        assert [item.text for item in made[1].requests] == ["But this."]
        assert [item.text for item in made[1].requests[0].context.exchanges] == ["Good morning."]
        assert r.errors().count(said) == 2


@pytest.mark.parametrize("tracker", [True, False])
@pytest.mark.parametrize("text_ended", [True, False])
async def test_sound_that_is_ready_when_the_engine_dies_is_played(
    tracker: bool, text_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mortals(monkeypatch)
    tts = HiggsTTSService(model="nano")
    reply = "One two three four. Five six seven eight nine ten."
    async with room(tts, tracker=tracker) as r:
        await r.say(reply if text_ended else f"{reply} ", end=text_ended)
        await r.until(lambda: r.output.seconds > 0.5 and len(made[0].requests) == 2)
        made[0].failure = EngineDiedError("oh")
        await r.worker.queue_frame(TTSSpeakFrame("Something else."))
        if not text_ended:
            await r.say(" This comes too late.", start=False)
        await r.until(lambda: "Something else." in " ".join(r.transcript()))
        assert " ".join(r.transcript()) == f"{reply} Something else."
        await r.until(lambda: len(tts.session.exchanges) == 3)
        assert tts.session.context_text.replace("\n", " ") == " ".join(r.transcript())
        assert r.errors() == ([] if text_ended else ["Higgs could not speak: oh"])
        await r.until(lambda: not tts.get_audio_contexts())


async def test_an_engine_that_will_not_start_is_given_back_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mortals(monkeypatch)
    refused = True

    async def start(self: Mortal) -> None:
        if refused and self is not made[0]:
            raise EngineDiedError("no memory")

    monkeypatch.setattr(Mortal, "start", start)
    async with room(HiggsTTSService(model="nano")) as r:
        await r.say("Good morning.")
        await r.until(lambda: len(r.transcript()) == 1)
        made[0].failure = EngineDiedError("oh")
        for count in (1, 2):
            await r.say("Nobody says this.")
            await r.until(lambda count=count: sum("no memory" in error for error in r.errors()) == count)
            await r.until(lambda count=count: [engine.closed for engine in made] == [True] * (count + 1))
        refused = False
        await r.say("But this.")
        await r.until(lambda: "But this." in " ".join(r.transcript()))
    assert [engine.closed for engine in made] == [True] * 4
