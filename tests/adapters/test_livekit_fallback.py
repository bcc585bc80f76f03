"""Behind the framework's wrappers, and with engines that die, are closed or not there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APITimeoutError, tts
from livekit.agents.voice.io import _CaptureCancelledEvent
from livekit.plugins import higgs

from higgs_voice import Voice
from higgs_voice.adapters import engines
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import FinishReason, SpeakRequest
from higgs_voice.errors import EngineDiedError, HiggsVoiceError, RunawayError
from tests.adapters.livekit_kit import CONN, Speaker, calling
from tests.adapters.mortal import Mortal, mortals
from tests.virtual_time import virtual

LONG = "This is the first sentence of the answer. Here the second one follows at once. And this is the third of them."
NEXT = "Something else."


def contexts(engine: FakeSynthesizer) -> list[list[str]]:
    """What each request was to be spoken behind."""
    return [[item.text for item in request.context.exchanges] for request in engine.requests]


async def drain(stream: tts.SynthesizeStream | tts.ChunkedStream) -> float:
    """Seconds of a stream that is read to its end."""
    async with stream:
        return sum([event.frame.duration async for event in stream])


async def spoken(voice: tts.TTS[Any], text: str, conn: APIConnectOptions = CONN) -> float:
    stream = voice.stream(conn_options=conn)
    stream.push_text(text)
    stream.end_input()
    return await drain(stream)


# What was heard


@pytest.mark.parametrize("attach", [True, False])
@virtual
async def test_behind_a_fallback_adapter_the_voice_remembers(attach: bool) -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice:
        async with calling(tts.FallbackAdapter([voice]), attach=attach) as session:
            await session.say("Good morning to you.")
            handle = session.say(LONG)
            await asyncio.sleep(3.2)
            handle.interrupt()
            await handle
            speaker = session.output.audio
            while speaker is not None and speaker.next_in_chain is not None:
                speaker = speaker.next_in_chain
            assert isinstance(speaker, Speaker)
            position = speaker.played[1][0]
            memory = voice.conversation(session).session
            assert memory is not None
            assert memory.exchanges[0].text == "Good morning to you."
            assert sum(item.frames for item in memory.exchanges[1:]) == pytest.approx(position * 25, abs=2)
            heard = [item.text for item in memory.exchanges]
            await session.say(NEXT)
        assert contexts(engine)[-1] == heard


@virtual
async def test_what_another_tts_said_is_not_remembered() -> None:
    """Nor what is said where the adapter finds out whether the voice works again."""
    dead = True
    engine = FakeSynthesizer(script=lambda _: EngineDiedError("oh") if dead else None)
    other = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as first, higgs.TTS(engine=other) as second:
        adapter = tts.FallbackAdapter([first, second], max_retry_per_tts=0)
        async with calling(adapter) as session:
            await session.say("This one is said by the second voice.")
            dead = False
            await session.say("And so is this one, while the first is tried.")
            await asyncio.sleep(1.0)
            assert engine.requests[-1].text.startswith("And so")
            await session.say("Here is the first one.")
            memory = first.conversation(session).session
            assert memory is not None
            assert [item.text for item in memory.exchanges] == ["Here is the first one."]
            said = first.conversation(session).said
            assert not said
        await adapter.aclose()
    assert contexts(engine)[-1] == []


@virtual
async def test_what_is_said_to_try_a_voice_is_not_remembered_by_the_clock_either() -> None:
    dead = True
    engine = FakeSynthesizer(script=lambda _: EngineDiedError("oh") if dead else None)
    async with higgs.TTS(engine=engine) as first, higgs.TTS(engine=FakeSynthesizer()) as second:
        adapter = tts.FallbackAdapter([first, second], max_retry_per_tts=0)
        await spoken(adapter, "This is said by the second voice.")
        dead = False
        await asyncio.sleep(20.0)
        await spoken(adapter, "Here is the first one.")
        tried = [request.text for request in engine.requests[1:]]
        assert tried == ["This is said by the second voice.", "Here is the first one."]
        assert contexts(engine)[-1] == []
        await adapter.aclose()


@virtual
async def test_behind_a_stream_adapter_the_voice_remembers() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice, calling(tts.StreamAdapter(tts=voice)) as session:
        await session.say(LONG)
        memory = voice.conversation(session).session
        assert memory is not None
        whole = [(request.text, round(len(request.text) * 1.5)) for request in engine.requests]
        assert len(whole) == 3
        assert [(item.text, item.frames) for item in memory.exchanges] == whole
        handle = session.say(LONG)
        await asyncio.sleep(4.0)
        handle.interrupt()
        await handle
        assert len(engine.requests) == 6  # all of it was made
        heard = memory.exchanges[3:]
        assert heard[0].frames == whole[0][1]
        assert sum(item.frames for item in heard) == pytest.approx(100, abs=4)
        assert [item.text for item in heard] == [whole[0][0], "Here the second one follows"]
        assert not voice.conversation(session).said


@virtual
async def test_a_capture_that_was_cancelled_ends_no_other_segment() -> None:
    """As an avatar's output reports it, after the tracker has seen the cancellation."""

    class Avatar(Speaker):
        full = False

        async def capture_frame(self, frame: rtc.AudioFrame) -> None:
            if self.full:
                await asyncio.sleep(10)
            await super().capture_frame(frame)

    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice, calling(voice) as session:
        output = Avatar()
        session.output.audio = output
        higgs.attach(session)
        handle = session.say(LONG)
        await asyncio.sleep(1.0)
        tracker = session.output.audio
        assert isinstance(tracker, higgs.HeardTracker)
        tracker.flush()
        output.full = True
        capture = asyncio.create_task(tracker.capture_frame(rtc.AudioFrame.create(24000, 1, 2400)))
        await asyncio.sleep(0.1)
        capture.cancel()
        await asyncio.gather(capture, return_exceptions=True)
        before = len(tracker._segments)
        tracker._dispatch_playback_finished(_CaptureCancelledEvent(playback_position=0, interrupted=True))
        assert len(tracker._segments) == before == 1
        assert not tracker._capturing
        output.full = False
        handle.interrupt()
        await handle


# Engines


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Mortal]:
    return mortals(monkeypatch)


@virtual
async def test_a_dead_engine_is_lent_to_nobody(made: list[Mortal]) -> None:
    first = await engines.borrow("nano")
    assert await engines.borrow("nano") is first
    assert engines.serves("nano", first)
    made[0].failure = EngineDiedError("oh")
    assert not engines.serves("nano", first)
    second = await engines.borrow("nano")
    assert second is made[1]
    assert made[0].closed
    assert len(made) == 2
    made[0].failure = None  # as of a closed engine, which has no worker any more
    assert not engines.serves("nano", first)
    for _ in range(3):
        assert not made[1].closed
        await engines.give_back("nano")
    assert made[1].closed
    assert not engines.serves("nano", second)


@virtual
async def test_a_call_outlives_its_engine(made: list[Mortal]) -> None:
    one = higgs.TTS(model="nano", voice=Voice.create(scene="A quiet room."))
    two = higgs.TTS(model="nano")
    async with one, two, calling(one) as session:
        await session.say("Good morning to you.")
        await spoken(two, "Beside it.")
        made[0].failure = EngineDiedError("oh")
        await session.say(NEXT)
        await spoken(two, "Beside it again.")
        assert len(made) == 2
        assert made[0].closed
        assert [item.text for item in made[1].requests] == [NEXT, "Beside it again."]
        (request, _) = made[1].requests
        assert [item.text for item in request.context.exchanges] == ["Good morning to you."]
        assert request.context.voice.scene == "A quiet room."
        memory = one.conversation(session).session
        assert memory is not None
        assert [item.text for item in memory.exchanges] == ["Good morning to you.", NEXT]
    assert made[1].closed


@virtual
async def test_a_closed_engine_is_an_error_and_the_next_tts_speaks() -> None:
    engine = FakeSynthesizer()
    await engine.aclose()
    async with higgs.TTS(engine=engine) as closed, higgs.TTS(engine=FakeSynthesizer()) as other:
        errors: list[tts.TTSError] = []
        closed.on("error", errors.append)
        with pytest.raises(APIConnectionError, match="closed") as raised:
            await spoken(closed, "Hello there.")
        assert not raised.value.retryable
        assert [error.recoverable for error in errors] == [False]
        adapter = tts.FallbackAdapter([closed, other])
        changes: list[bool] = []
        adapter.on("tts_availability_changed", lambda event: changes.append(event.available))
        assert await spoken(adapter, "Hello there.") > 0.5
        assert changes == [False]
        await adapter.aclose()


@virtual
async def test_a_conversation_that_was_closed_on_purpose_ends_its_stream_quietly() -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as voice:
        errors: list[tts.TTSError] = []
        voice.on("error", errors.append)
        stream = voice.stream(conn_options=CONN)
        await voice.conversation().aclose()
        stream.push_text("Hello there.")
        stream.end_input()
        assert await drain(stream) == 0
        assert not errors


async def test_a_server_that_is_not_there_is_given_up_soon() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(model="ws://127.0.0.1:9") as nobody, higgs.TTS(engine=engine) as other:
        adapter = tts.FallbackAdapter([nobody, other], max_retry_per_tts=0)
        began = asyncio.get_running_loop().time()
        stream = adapter.stream()
        stream.push_text("Hello there.")
        stream.end_input()
        async with stream:
            await anext(stream)
            assert asyncio.get_running_loop().time() - began < 4.0
        await adapter.aclose()


# Sentences that fail


@pytest.mark.parametrize("failing", [FinishReason.RUNAWAY, FinishReason.COLLAPSE, RunawayError("ran away")])
@virtual
async def test_a_sentence_that_was_not_spoken_is_reported(failing: FinishReason | HiggsVoiceError) -> None:
    def script(request: SpeakRequest) -> FinishReason | BaseException | None:
        return failing if "second" in request.text else None

    async with higgs.TTS(engine=FakeSynthesizer(script=script)) as voice, calling(voice) as session:
        errors: list[Any] = []
        session.on("error", lambda event: errors.append(event.error))
        await session.say(LONG)
        assert [error.type for error in errors] == ["tts_error"]
        assert errors[0].recoverable
        assert errors[0].label == voice.label
        await session.say(NEXT)
        assert len(errors) == 1


# Streams that wait


@virtual
async def test_a_stream_behind_one_without_an_end_is_given_up() -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as voice:
        open_ = voice.stream(conn_options=CONN)
        open_.push_text("Hello there. This is")
        began = asyncio.get_running_loop().time()
        with pytest.raises(APITimeoutError, match="end_input"):
            await spoken(voice, "Another.", APIConnectOptions(max_retry=0, timeout=2.0))
        assert asyncio.get_running_loop().time() - began < 5.0
        await open_.aclose()
        assert await spoken(voice, "Another.") > 0


@virtual
async def test_a_stream_behind_one_that_is_fed_slowly_waits() -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as voice:
        slow = voice.stream(conn_options=CONN)
        second = asyncio.create_task(spoken(voice, "Another.", APIConnectOptions(max_retry=0, timeout=2.0)))
        slow.push_text("Here")
        await asyncio.sleep(0.1)
        for word in " is one that takes its time.".split(" "):
            slow.push_text(word + " ")
            await asyncio.sleep(1.5)
        slow.end_input()
        assert await drain(slow) > 0
        assert await second > 0
