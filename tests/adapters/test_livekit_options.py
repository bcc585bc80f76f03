"""Which voice speaks, and how: several TTS objects in one session, and options that change at any time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import pytest
from livekit.agents import APIConnectOptions, APIError, tts
from livekit.plugins import higgs

from higgs_voice import Sampling
from higgs_voice.adapters.livekit.conversation import Said
from higgs_voice.adapters.livekit.heard import _Segment  # pyright: ignore[reportPrivateUsage]
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.text import Lexicon
from tests.adapters.livekit_kit import CONN, calling, hand_over
from tests.virtual_time import virtual

ADA = "feminine; warm"
ROSS = "masculine; old"
COOL = Sampling(temperature=0.1)


class Slow(FakeSynthesizer):
    """Takes a second to load."""

    async def start(self) -> None:
        await asyncio.sleep(1.0)


async def spoken(voice: tts.TTS[Any], text: str) -> None:
    async with voice.stream(conn_options=CONN) as stream:
        stream.push_text(text)
        stream.end_input()
        async for _ in stream:
            pass


def voices(engine: FakeSynthesizer) -> list[str]:
    """Who was to speak, of each request."""
    return [request.context.voice.speakers[0].removeprefix("SPEAKER0: ") for request in engine.requests]


def contexts(engine: FakeSynthesizer) -> list[list[str]]:
    return [[item.text for item in request.context.exchanges] for request in engine.requests]


# While it loads


@virtual
async def test_options_that_change_while_the_engine_loads_hold() -> None:
    engine = Slow()
    async with higgs.TTS(engine=engine, voice=ADA) as voice:
        voice.prewarm()
        await asyncio.sleep(0.3)
        voice.update_options(voice=ROSS, sampling=COOL)
        await spoken(voice, "Hello.")
        assert voices(engine) == [ROSS]
        assert engine.requests[0].sampling.temperature == 0.1


@virtual
async def test_a_voice_that_is_changed_while_the_wrong_one_is_looked_for_is_found() -> None:
    engine = Slow()
    async with higgs.TTS(engine=engine, voice="nosuchvoice") as voice:
        voice.prewarm()
        await asyncio.sleep(0.3)
        voice.update_options(voice=ROSS)
        await asyncio.sleep(2.0)
        await spoken(voice, "Hello.")
        assert voices(engine) == [ROSS]


@virtual
async def test_a_voice_that_is_named_after_a_call_was_taken_up_is_that_calls_voice() -> None:
    engine = FakeSynthesizer()
    words = Lexicon({"Kubernetes": "koobernetties"})
    async with higgs.TTS(engine=engine, voice=ADA, lexicon=words) as voice:
        await spoken(voice, "One.")
        await asyncio.sleep(5.0)
        data = voice.conversation().snapshot()
    async with higgs.TTS(engine=engine, voice=ADA) as voice:
        voice.conversation().restore(data)
        voice.update_options(voice=ROSS, context="keep")
        await spoken(voice, "Kubernetes.")
    assert engine.requests[1].text == "koobernetties."
    assert voices(engine) == [ADA, ROSS]
    assert contexts(engine) == [[], ["One."]]


# A voice that is not there


@virtual
async def test_a_voice_that_cannot_be_had_changes_nothing_else() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice=ADA) as voice:
        await spoken(voice, "One.")
        voice.update_options(voice="nosuchvoice")
        await asyncio.sleep(0.3)
        assert voice.options.voice == ADA
        voice.update_options(sampling=COOL)
        await spoken(voice, "Two.")
        voice.update_options(voice="nosuchvoice", sampling=Sampling(temperature=0.2))
        await spoken(voice, "Three.")
        voice.update_options(voice="nosuchvoice")
        voice.update_options(voice=ROSS)
        await spoken(voice, "Four.")
        assert voice.options.voice == ROSS
    assert voices(engine) == [ADA, ADA, ADA, ROSS]
    assert [request.sampling.temperature for request in engine.requests[1:]] == [0.1, 0.2, 0.2]


@pytest.mark.parametrize("shared", [False, True])
@virtual
async def test_in_a_session_a_voice_that_cannot_be_had_leaves_the_old_one(shared: bool) -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice=ADA) as one, higgs.TTS(engine=engine, voice=ADA) as two:
        async with calling(one) as session:
            await session.say("One.")
            if shared:
                await hand_over(session, two)
                await session.say("Two.")
            one.update_options(voice="nosuchvoice")
            await hand_over(session, one)
            await session.say("Three.")
            assert one.options.voice == ADA
            await session.say("Four.")
            assert one.conversation(session) is two.conversation(session)
            wrong = higgs.TTS(engine=engine, voice="nosuchvoice")
            assert wrong.conversation(session) is not one.conversation(session)
    assert set(voices(engine)) == {ADA}
    assert contexts(engine)[-1][0] == "One."


@virtual
async def test_a_voice_that_was_never_there_is_an_error() -> None:
    async with higgs.TTS(engine=FakeSynthesizer(), voice="nosuchvoice") as voice:
        with pytest.raises(APIError, match="nosuchvoice"):
            await spoken(voice, "Hello.")
        voice.update_options(voice=ROSS)
        await spoken(voice, "Hello.")


# Several agents


@virtual
async def test_agents_of_one_voice_speak_each_in_its_own_manner() -> None:
    engine = FakeSynthesizer()
    words = Lexicon({"Kubernetes": "koobernetties"})
    calm = higgs.SessionSettings(sampling=COOL, normalize=False)
    async with (
        higgs.TTS(engine=engine, voice=ADA, lexicon=words) as one,
        higgs.TTS(engine=engine, voice=ADA, settings=calm) as two,
        calling(one) as session,
    ):
        await session.say("Kubernetes 1.")
        await hand_over(session, two)
        await session.say("Kubernetes 2.")
        await hand_over(session, one)
        await session.say("Kubernetes 3.")
        assert one.conversation(session) is two.conversation(session)
    assert [request.text for request in engine.requests] == [
        "koobernetties one.",
        "Kubernetes 2.",
        "koobernetties three.",
    ]
    temperatures = [request.sampling.temperature for request in engine.requests]
    assert temperatures == [None, 0.1, None]
    assert [len(context) for context in contexts(engine)] == [0, 1, 2]


@virtual
async def test_an_agent_that_takes_another_voice_leaves_the_others_theirs() -> None:
    engine = FakeSynthesizer()
    async with (
        higgs.TTS(engine=engine, voice=ADA) as one,
        higgs.TTS(engine=engine, voice=ADA) as two,
        higgs.TTS(engine=engine, voice=ROSS) as three,
        calling(one) as session,
    ):
        await session.say("One.")
        await hand_over(session, two)
        await session.say("Two.")
        one.update_options(voice=ROSS)
        await session.say("Three.")
        await hand_over(session, one)
        await session.say("Four.")
        await hand_over(session, three)
        await session.say("Five.")
        await hand_over(session, two)
        await session.say("Six.")
        assert one.conversation(session) is three.conversation(session)
        assert one.conversation(session) is not two.conversation(session)
    assert voices(engine) == [ADA, ADA, ADA, ROSS, ROSS, ADA]
    assert contexts(engine) == [[], ["One."], ["One.", "Two."], [], ["Four."], ["One.", "Two.", "Three."]]


@virtual
async def test_an_agent_that_takes_the_voice_of_another_goes_on_in_its_context() -> None:
    engine = FakeSynthesizer()
    async with (
        higgs.TTS(engine=engine, voice=ADA) as one,
        higgs.TTS(engine=engine, voice=ROSS) as two,
        calling(one) as session,
    ):
        await session.say("One.")
        await hand_over(session, two)
        await session.say("Two.")
        one.update_options(voice=ROSS)
        await hand_over(session, one)
        await session.say("Three.")
        assert one.conversation(session) is two.conversation(session)
    assert voices(engine) == [ADA, ROSS, ROSS]
    assert contexts(engine) == [[], [], ["Two."]]


@virtual
async def test_an_agent_that_shades_its_voice_keeps_what_was_said() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice=ADA) as one, higgs.TTS(engine=engine, voice=ADA) as two:
        async with calling(one) as session:
            await session.say("One.")
            await hand_over(session, two)
            await session.say("Two.")
            two.update_options(scene="A church.", context="keep")
            await session.say("Three.")
            await hand_over(session, one)
            await session.say("Four.")
    assert [request.context.voice.scene for request in engine.requests] == [None, None, "A church.", None]
    assert contexts(engine) == [[], ["One."], ["One.", "Two."], ["One.", "Two."]]


@virtual
async def test_a_new_tts_of_the_voice_that_was_taken_goes_on_in_it() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice=ADA) as one, calling(one) as session:
        await session.say("One.")
        one.update_options(voice=ROSS)
        await session.say("Two.")
        async with higgs.TTS(engine=engine, voice=ROSS) as two:
            await hand_over(session, two)
            await session.say("Three.")
            assert len({request.session_id for request in engine.requests}) == 1
            await hand_over(session, one)
        await session.say("Four.")  # one that is closed takes nobody else's conversation with it
    assert voices(engine) == [ADA, ROSS, ROSS, ROSS]
    assert contexts(engine) == [[], [], ["Two."], ["Two.", "Three."]]


# Other threads


@virtual
async def test_options_change_from_any_thread() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice=ADA) as voice:
        await asyncio.to_thread(voice.update_options, voice=ADA)
        await spoken(voice, "One.")
        await asyncio.to_thread(voice.update_options, voice=ROSS, sampling=COOL)
        await asyncio.sleep(0.1)
        await spoken(voice, "Two.")
        await asyncio.to_thread(voice.update_options, sampling=Sampling(temperature=0.2))
        await spoken(voice, "Three.")
    assert voices(engine) == [ADA, ROSS, ROSS]
    assert [request.sampling.temperature for request in engine.requests[1:]] == [0.1, 0.2]


async def test_a_voice_that_is_not_there_before_the_first_speech_leaves_the_old_one() -> None:
    engine = FakeSynthesizer()
    speaking = higgs.TTS(engine=engine, voice="feminine; warm")
    speaking.conversation()
    speaking.update_options(voice="nope")
    speaking.update_options(voice="nobody")
    for _ in range(2):
        frame = await speaking.synthesize("Hello there.", conn_options=APIConnectOptions(max_retry=0)).collect()
        assert frame.duration > 0.5
    assert speaking.options.voice == "feminine; warm"
    assert engine.requests[-1].context.voice.speakers == ("SPEAKER0: feminine; warm",)
    speaking.update_options(voice="masculine; calm")
    await speaking.synthesize("Hello there.", conn_options=APIConnectOptions(max_retry=0)).collect()
    assert engine.requests[-1].context.voice.speakers == ("SPEAKER0: masculine; calm",)
    await speaking.aclose()


@dataclass(eq=False)
class _Spoken:
    """What a segment asks of a speech."""

    audio_s: float
    complete: bool = True


def test_speeches_that_join_a_segment_while_it_plays_have_a_playhead() -> None:
    segment = _Segment()
    first, second, third = (Said(_Spoken(3.0), cast(Any, None)) for _ in range(3))  # type: ignore[arg-type]
    segment.add(first, 3.0)
    segment.start(100.0)
    segment.add(second, 3.0)
    assert [said.playhead_s(104.0) for said in (first, second)] == [3.0, 1.0]
    segment.pause(104.0)
    segment.add(third, 3.0)
    assert [said.playhead_s(110.0) for said in (first, second, third)] == [3.0, 1.0, 0.0]
    segment.resume(111.0)
    assert [said.playhead_s(113.0) for said in (first, second, third)] == [3.0, 3.0, 0.0]
    assert third.playhead_s(114.5) == pytest.approx(1.5)
