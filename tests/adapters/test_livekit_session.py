"""Whole `AgentSession`s on virtual time: what the voice remembers is what was played."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIError
from livekit.plugins import higgs

from higgs_voice import SessionSettings, Voice, VoiceSession
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import SpeakRequest
from higgs_voice.errors import SettingsError, SnapshotError
from tests.adapters.livekit_kit import Script, Speaker
from tests.virtual_time import virtual

LONG = "This is the first sentence of the answer. Here the second one follows at once. And this is the third of them."
NEXT = "Something else."


class Call:
    """A session with an output that plays, without ears."""

    def __init__(
        self,
        *answers: str,
        engine: FakeSynthesizer | None = None,
        attach: bool = True,
        rate: int = 24000,
        snapshot: bytes | None = None,
        **options: Any,
    ) -> None:
        self.engine = engine or FakeSynthesizer()
        self.tts = higgs.TTS(engine=self.engine, **options)
        self.llm = Script(*answers)
        self.session: AgentSession[Any] = AgentSession(llm=self.llm, tts=self.tts)
        self.speaker = Speaker(sample_rate=rate)
        self._attach = attach
        self._snapshot = snapshot

    async def __aenter__(self) -> Call:
        if self._snapshot is not None:
            self.tts.conversation(self.session).restore(self._snapshot)
        self.session.output.audio = self.speaker
        await self.session.start(Agent(instructions="Be brief."))
        if self._attach:
            higgs.attach(self.session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.aclose()
        await self.tts.aclose()

    @property
    def voice(self) -> VoiceSession:
        session = self.tts.conversation(self.session).session
        assert session is not None
        return session

    @property
    def remembered(self) -> list[tuple[str, int]]:
        """Text and frames of every exchange in the context."""
        return [(item.text, item.frames) for item in self.voice.exchanges]

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.remembered]

    async def hand_over(self, agent: Agent) -> None:
        self.session.update_agent(agent)
        while self.session.current_agent is not agent or self.session._activity is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)

    async def say(self, text: str) -> None:
        await self.session.say(text)


def frames(text: str) -> int:
    return round(len(text) * 1.5)


@virtual
async def test_turns_are_remembered_whole() -> None:
    async with Call() as call:
        await call.say("Good morning to you.")
        await call.say("How can I help you today?")
        assert call.remembered == [
            (text, frames(text)) for text in ("Good morning to you.", "How can I help you today?")
        ]
        assert [len(request.context.exchanges) for request in call.engine.requests] == [0, 1]
        assert call.speaker.played[0] == (pytest.approx(frames("Good morning to you.") / 25), False)


@virtual
async def test_a_barge_in_leaves_what_was_played() -> None:
    async with Call() as call:
        handle = call.session.say(LONG)
        await asyncio.sleep(3.2)
        handle.interrupt()
        await handle
        position, interrupted = call.speaker.played[0]
        assert interrupted
        assert position == pytest.approx(3.2, abs=0.1)
        first = call.engine.requests[0].text
        second = call.engine.requests[1].text
        heard = call.remembered
        assert heard[0] == (first, frames(first))
        assert second.startswith(heard[1][0])
        assert heard[1][1] == int((position - frames(first) / 25) * 25 + 1e-6)
        assert len(heard) == 2
        assert not call.engine.active
        await call.say(NEXT)
        assert [item.text for item in call.engine.requests[-1].context.exchanges] == [text for text, _ in heard]


@virtual
async def test_a_barge_in_before_the_first_sound_leaves_nothing() -> None:
    gate = asyncio.Event()
    engine = FakeSynthesizer(pace=lambda _, __: gate.wait())
    async with Call(engine=engine) as call:
        handle = call.session.say(LONG)
        await asyncio.sleep(0.5)
        handle.interrupt()
        gate.set()
        await handle
        await call.say(NEXT)
        assert call.texts == [NEXT]
        assert engine.requests[-1].context.exchanges == ()


@virtual
async def test_a_turn_that_waits_and_is_dropped_leaves_nothing() -> None:
    async with Call() as call:
        first = call.session.say("The one that is being played now.")
        second = call.session.say("The one that waits for its turn.")
        await asyncio.sleep(0.3)
        second.interrupt()
        await first
        await second
        await call.say(NEXT)
        assert call.texts == ["The one that is being played now.", NEXT]


class _Segments(Agent):
    """Says two segments, as an agent that flushes before it calls a tool does."""

    async def llm_node(self, chat_ctx: Any, tools: Any, model_settings: Any) -> Any:
        from livekit.agents import FlushSentinel

        yield "The first segment is spoken. "
        yield FlushSentinel()
        yield "The second is made while it plays."


@virtual
async def test_segments_are_matched_with_what_was_played_of_each() -> None:
    async with Call() as call:
        await call.hand_over(_Segments(instructions="x"))
        handle = call.session.generate_reply(user_input="Go on.")
        await asyncio.sleep(0.5)
        first, second = "The first segment is spoken.", "The second is made while it plays."
        await asyncio.sleep(frames(first) / 25 + 0.3)
        handle.interrupt()
        await handle
        heard = call.remembered
        assert heard[0] == (first, frames(first))
        assert len(heard) == 2
        assert 0 < heard[1][1] < frames(second)
        assert second.startswith(heard[1][0])


@virtual
async def test_a_pause_that_was_no_interruption_cuts_nothing() -> None:
    async with Call() as call:
        handle = call.session.say(LONG)
        await asyncio.sleep(1.0)
        output = call.session.output.audio
        assert output is not None
        assert output.can_pause
        output.pause()
        await asyncio.sleep(60.0)
        output.resume()
        await handle
        assert call.texts == [request.text for request in call.engine.requests]
        assert sum(count for _, count in call.remembered) == call.engine.steps


@virtual
async def test_a_pause_that_was_one_cuts_at_the_pause() -> None:
    async with Call() as call:
        handle = call.session.say(LONG)
        await asyncio.sleep(2.0)
        assert call.session.output.audio is not None
        call.session.output.audio.pause()
        await asyncio.sleep(5.0)
        handle.interrupt()
        await handle
        assert call.speaker.played[0][0] == pytest.approx(2.0, abs=0.1)
        assert sum(count for _, count in call.remembered) == pytest.approx(50, abs=3)


@virtual
async def test_one_voice_over_agents() -> None:
    async with Call() as call:
        await call.say("From the first agent.")
        await call.hand_over(Agent(instructions="Other."))
        await call.say("From the second agent.")
        # A third one brings a TTS of its own that means the same voice.
        other = higgs.TTS(engine=call.engine)
        await call.hand_over(Agent(instructions="Third.", tts=other))
        await call.say("From the third agent.")
        assert call.texts == ["From the first agent.", "From the second agent.", "From the third agent."]
        assert len({request.session_id for request in call.engine.requests}) == 1
        # A fourth one means another voice.
        await call.hand_over(Agent(instructions="Fourth.", tts=higgs.TTS(engine=call.engine, voice="deep; calm")))
        await call.say("From the fourth agent.")
        assert len({request.session_id for request in call.engine.requests}) == 2
        assert len(call.texts) == 3


@virtual
async def test_the_voice_goes_with_its_session() -> None:
    engine = FakeSynthesizer()
    closed: list[str] = []
    engine.close_session = closed.append  # type: ignore[method-assign]
    voice = higgs.TTS(engine=engine)
    for _ in range(2):
        session: AgentSession[Any] = AgentSession(tts=voice)
        session.output.audio = Speaker()
        await session.start(Agent(instructions="x"))
        higgs.attach(session)
        await session.say("Hello there.")
        await session.aclose()
        await asyncio.sleep(0.1)
    assert len(set(closed)) == 2
    assert [len(request.context.exchanges) for request in engine.requests] == [0, 0]


@virtual
async def test_a_call_goes_on_in_another_job_with_what_was_played_of_it() -> None:
    async with Call(voice=Voice.create(scene="A quiet room.")) as call:
        await call.say("Good morning to you.")
        handle = call.session.say(LONG)
        await asyncio.sleep(3.2)
        data = call.tts.conversation(call.session).snapshot()
        position, call_id = call.speaker.position, call.voice.call_id
        running = len(call.remembered)
        handle.interrupt()
        await handle
        assert call.remembered[0] == ("Good morning to you.", frames("Good morning to you."))
        settled = call.remembered
        assert len(settled) < running  # the snapshot holds what was played, and not what has been made
    async with Call(snapshot=data) as there:
        await there.tts.conversation(there.session).ready()
        assert there.remembered[:-1] == settled[:-1]
        text, kept = there.remembered[-1]
        assert settled[-1][0].startswith(text)
        first = frames(LONG[: LONG.index(".") + 1])
        assert kept == pytest.approx(position * 25 - first, abs=2)
        assert there.voice.voice.scene == "A quiet room."
        assert there.voice.call_id == call_id
        await there.say(NEXT)
        (request,) = there.engine.requests
        assert request.context.voice.scene == "A quiet room."
        assert [item.text for item in request.context.exchanges] == [text for text, _ in there.remembered[:-1]]
        with pytest.raises(SnapshotError, match="before a conversation begins"):
            there.tts.conversation(there.session).restore(data)


@virtual
async def test_what_is_no_snapshot_is_refused_at_once() -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as tts:
        with pytest.raises(SnapshotError, match="no snapshot of a session"):
            tts.conversation().restore(b"{}")
        with pytest.raises(SnapshotError, match="has not begun"):
            tts.conversation().snapshot()


@virtual
async def test_two_sessions_of_one_tts_are_two_voices() -> None:
    engine = FakeSynthesizer()
    async with Call(engine=engine) as one, Call(engine=engine) as two:
        two.session._tts = one.tts
        await asyncio.gather(one.say("Here is the first."), two.say("Here is the second."))
        assert one.texts == ["Here is the first."]
        other = one.tts.conversation(two.session).session
        assert other is not None
        assert [item.text for item in other.exchanges] == ["Here is the second."]


@virtual
async def test_without_a_tracker_the_outputs_events_are_followed() -> None:
    async with Call(attach=False) as call:
        await call.say("Good morning to you.")
        handle = call.session.say(LONG)
        await asyncio.sleep(3.2)
        handle.interrupt()
        await handle
        assert call.texts[0] == "Good morning to you."
        position = call.speaker.played[1][0]
        assert sum(count for _, count in call.remembered[1:]) == pytest.approx(position * 25, abs=2)


@virtual
async def test_resampled_frames_are_matched_in_order() -> None:
    async with Call(rate=16000) as call:
        await call.say("Good morning to you.")
        handle = call.session.say(LONG)
        await asyncio.sleep(2.0)
        handle.interrupt()
        await handle
        assert call.texts[0] == "Good morning to you."
        position = call.speaker.played[1][0]
        assert sum(count for _, count in call.remembered[1:]) == pytest.approx(position * 25, abs=2)


@virtual
async def test_sound_of_others_is_nobodys_speech() -> None:
    async def beep() -> Any:
        for _ in range(5):
            frame = rtc.AudioFrame.create(24000, 1, 4800)
            frame.userdata["beep"] = True
            yield frame

    async with Call() as call:
        await call.say("Good morning to you.")
        await call.session.say("beep", audio=beep())
        await call.say(NEXT)
        assert call.texts == ["Good morning to you.", NEXT]


@virtual
async def test_generation_keeps_to_what_is_played() -> None:
    engine = FakeSynthesizer(frames_per_char=10)
    async with Call(engine=engine, run_ahead_s=3.0) as call:
        handle = call.session.say(LONG)
        await asyncio.sleep(5.0)
        assert call.speaker.max_ahead_s < 4.0
        assert engine.steps / 25 == pytest.approx(8.0, abs=1.0)
        assert call.session.output.audio is not None
        call.session.output.audio.pause()
        await asyncio.sleep(30.0)
        assert engine.steps / 25 == pytest.approx(8.0, abs=1.5)
        call.session.output.audio.resume()
        await handle
        # The framework ends a segment whose last frame it had already sent with 10 ms of silence.
        assert call.speaker.played[0] == (pytest.approx(engine.steps / 25, abs=0.011), False)


@virtual
async def test_twenty_turns_of_an_llm_are_one_voice() -> None:
    answers = [f"This is answer number {number} of the call. It has two sentences." for number in range(20)]
    async with Call(*answers) as call:
        for number in range(20):
            await call.session.generate_reply(user_input=f"Question {number}?")
        assert len({request.session_id for request in call.engine.requests}) == 1
        assert call.voice.stats.context_s <= 45.0
        assert call.voice.stats.provisional == 0
        assert not call.tts.conversation(call.session).said


@virtual
async def test_update_options_during_a_turn_does_not_cut_it() -> None:
    async with Call(voice="feminine; warm") as call:
        handle = call.session.say(LONG)
        await asyncio.sleep(1.0)
        call.tts.update_options(voice="masculine; old")
        await handle
        assert call.speaker.played[0][1] is False
        await call.say(NEXT)
        assert call.engine.requests[0].context.voice.speakers == ("SPEAKER0: feminine; warm",)
        assert call.engine.requests[-1].context.voice.speakers == ("SPEAKER0: masculine; old",)


@virtual
async def test_an_engine_that_fails_ends_the_turn_and_not_the_session() -> None:
    failing = True

    def script(_: SpeakRequest) -> BaseException | None:
        from higgs_voice.errors import EngineDiedError

        return EngineDiedError("oh") if failing else None

    async with Call(engine=FakeSynthesizer(script=script)) as call:
        with suppress(APIError):
            await call.say("This one fails.")
        failing = False
        await call.say(NEXT)
        assert call.texts == [NEXT]


@virtual
async def test_attach_is_idempotent_and_needs_an_output() -> None:
    session: AgentSession[Any] = AgentSession()
    with pytest.raises(SettingsError, match=r"after session.start"):
        higgs.attach(session)
    session.output.audio = Speaker()
    higgs.attach(session)
    first = session.output.audio
    higgs.attach(session)
    assert session.output.audio is first
    assert isinstance(first, higgs.HeardTracker)


@virtual
async def test_settings_reach_the_session() -> None:
    async with Call(settings=SessionSettings(window=higgs.Window.last_n(1))) as call:
        for number in ("one", "two", "three"):
            await call.say(f"Sentence number {number}.")
        assert call.texts == ["Sentence number three."]
