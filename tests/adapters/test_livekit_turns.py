"""What the framework does with turns of its own accord: hand-offs by a tool, answers made too early, pauses that were none."""

from __future__ import annotations

import asyncio
from typing import Any

from livekit.agents import Agent, AgentSession, function_tool, llm
from livekit.agents.voice.audio_recognition import _PreemptiveGenerationInfo
from livekit.plugins import higgs

from higgs_voice.backends.fake import FakeSynthesizer
from tests.adapters.livekit_kit import CONN, Script, Speaker
from tests.virtual_time import virtual

LONG = "This is the first sentence of the answer. Here the second one follows at once. And this is the third of them."


class Room:
    """An `AgentSession` with an output that plays."""

    def __init__(self, model: llm.LLM, agent: Agent | None = None, **options: Any) -> None:
        self.engine = FakeSynthesizer()
        self.tts = higgs.TTS(engine=self.engine)
        self.session: AgentSession[Any] = AgentSession(llm=model, tts=self.tts, **options)
        self.speaker = Speaker()
        self._agent = agent or Agent(instructions="Be brief.")

    async def __aenter__(self) -> Room:
        self.session.output.audio = self.speaker
        await self.session.start(self._agent)
        higgs.attach(self.session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.aclose()
        await self.tts.aclose()

    @property
    def activity(self) -> Any:
        return self.session._activity

    @property
    def texts(self) -> list[str]:
        """Of the exchanges in the context."""
        voice = self.tts.conversation(self.session).session
        assert voice is not None
        return [item.text for item in voice.exchanges]


class Transferring(llm.LLM):
    """Says a sentence and calls the tool `transfer`."""

    def chat(self, *, chat_ctx: llm.ChatContext, tools: list[llm.Tool] | None = None, **_: Any) -> llm.LLMStream:
        return _Transfer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=CONN)


class _Transfer(llm.LLMStream):
    async def _run(self) -> None:
        call = llm.FunctionToolCall(name="transfer", arguments="{}", call_id="1")
        for delta in (
            llm.ChoiceDelta(role="assistant", content="I hand you over to my colleague. "),
            llm.ChoiceDelta(role="assistant", tool_calls=[call]),
        ):
            self._event_ch.send_nowait(llm.ChatChunk(id="transfer", delta=delta))
            await asyncio.sleep(0.01)


class Colleague(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You are the colleague.")
        self.done = asyncio.Event()

    async def on_enter(self) -> None:
        await self.session.say("Hello, this is the colleague.")
        self.done.set()


class Reception(Agent):
    def __init__(self, colleague: Colleague) -> None:
        super().__init__(instructions="You are the reception.")
        self._colleague = colleague

    @function_tool
    async def transfer(self) -> Agent:
        """Hand the caller over."""
        return self._colleague


@virtual
async def test_a_hand_off_by_a_tool_goes_on_in_the_same_voice() -> None:
    colleague = Colleague()
    async with Room(Transferring(), Reception(colleague)) as room:
        room.session.generate_reply(user_input="Connect me.")
        await asyncio.wait_for(colleague.done.wait(), 60)
        assert room.session.current_agent is colleague
        assert room.texts == ["I hand you over to my colleague.", "Hello, this is the colleague."]
        assert len({request.session_id for request in room.engine.requests}) == 1
        assert [len(request.context.exchanges) for request in room.engine.requests] == [0, 1]


@virtual
async def test_an_answer_that_was_made_too_early_and_thrown_away_leaves_no_trace() -> None:
    early, right = "This answer was made before the caller had finished.", "And this one is the right one."
    handling = {"preemptive_generation": {"enabled": True, "preemptive_tts": True}}
    async with Room(Script(early, right), turn_handling=handling) as room:
        await room.session.say("Hello there.")
        await asyncio.sleep(0.2)  # the turn is over
        info = _PreemptiveGenerationInfo(new_transcript="I would", transcript_confidence=1.0, started_speaking_at=None)
        room.activity.on_preemptive_generation(info)
        await asyncio.sleep(3.0)
        assert [request.text for request in room.engine.requests] == [
            "Hello there.",
            early,
        ]  # it was indeed synthesised
        room.activity._cancel_preemptive_generation()
        await asyncio.sleep(0.5)
        await room.session.generate_reply(user_input="I would like to know more.")
        assert room.texts == ["Hello there.", right]
        assert [item.text for item in room.engine.requests[-1].context.exchanges] == ["Hello there."]
        assert len(room.speaker.played) == 2


@virtual
async def test_an_interruption_that_was_none_goes_on_where_it_paused() -> None:
    handling = {"interruption": {"resume_false_interruption": True, "false_interruption_timeout": 2.0}}
    async with Room(Script(), turn_handling=handling) as room:
        events: list[Any] = []
        room.session.on("agent_false_interruption", events.append)
        began = asyncio.get_running_loop().time()
        handle = room.session.say(LONG)
        await asyncio.sleep(3.0)
        room.activity._interrupt_by_audio_activity()  # a cough: the detector of voices heard something
        await asyncio.sleep(0.1)
        paused_at = room.speaker.position
        assert room.session.agent_state == "listening"
        await asyncio.sleep(1.0)
        assert room.speaker.position == paused_at
        room.activity._start_false_interruption_timer(2.0)  # it is quiet again, and nothing was understood
        await handle
        assert [event.resumed for event in events] == [True]
        assert not handle.interrupted
        assert asyncio.get_running_loop().time() - began > room.engine.steps / 25 + 2.9
        assert room.texts == [request.text for request in room.engine.requests]
        voice = room.tts.conversation(room.session).session
        assert voice is not None
        assert sum(item.frames for item in voice.exchanges) == room.engine.steps
        assert voice.stats.provisional == 0
