"""A LiveKit agent with one voice for the whole call: `python agents/livekit_agent.py dev` (or `start`, `console`).

It works without any account and without a network: the LLM is a script, and the caller types (or talks, to interrupt; with
no speech recognition nobody writes down what was said). Set these to change that:

    HIGGS_VOICE_MODEL     the engine: ws://127.0.0.1:8765 (`higgs-voice serve`, shared by all calls), or nano (the default:
                          one in each job), a hub id or a folder
    HIGGS_VOICE_TOKEN     the server's token
    HIGGS_AGENT_VOICE     a voice's name, a saved voice's file, or a description of the speaker
    HIGGS_AGENT_WINDOW    how many exchanges the voice hears of what it said before (40 s of them)
    HIGGS_AGENT_TEMPERATURE, HIGGS_AGENT_SEED   how codes are drawn (what the model recommends; another seed for every chunk)
    HIGGS_AGENT_LLM_URL   an OpenAI-compatible LLM, such as http://127.0.0.1:11434/v1; with HIGGS_AGENT_LLM_MODEL
    HIGGS_AGENT_WORD_S    seconds the script takes for a word (0.01)
    HIGGS_AGENT_STT_URL   an OpenAI-compatible transcriber; with HIGGS_AGENT_STT_MODEL
    LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET   the LiveKit server (`make livekit` sets them)

A caller may ask the agent's participant what the voice remembers: the RPC method "higgs.memory" answers with JSON. With the
number of an exchange as payload it answers with that exchange's codes, in base64.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterable
from typing import Any

from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    Agent,
    AgentServer,
    AgentSession,
    APIConnectOptions,
    JobContext,
    ModelSettings,
    StopResponse,
    cli,
    llm,
    room_io,
)
from livekit.plugins import higgs
from livekit.rtc import RpcInvocationData

from higgs_voice.adapters.telephony import PhoneSound, phone_frames, sip_caller

MODEL = os.environ.get("HIGGS_VOICE_MODEL", "nano")
GREETING = "Hello, and welcome. What can I do for you?"
ANSWERS = (
    "I have found your order. It left the warehouse this morning, and it will be with you tomorrow before noon.",
    "Of course. I have changed the address, and you will get a message when the driver is near.",
    "That is a good question. The first option costs less, and the second one takes half the time.",
    "Thank you for waiting. Everything is in place, and there is nothing else that you need to do.",
)


class ScriptedLLM(llm.LLM[Any]):
    """Answers from a list, a word at a time. A message that begins with ``say:`` is said as it stands."""

    def __init__(self, word_s: float = 0.01) -> None:
        super().__init__()
        self.word_s = word_s
        self.answers = itertools.cycle(ANSWERS)

    @property
    def model(self) -> str:
        return "scripted"

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> llm.LLMStream:
        return _ScriptedStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _ScriptedStream(llm.LLMStream):
    async def _run(self) -> None:
        script = self._llm
        assert isinstance(script, ScriptedLLM)
        asked = next((m.text_content or "" for m in reversed(self._chat_ctx.messages()) if m.role == "user"), "")
        text = asked.removeprefix("say:").strip() if asked.startswith("say:") else next(script.answers)
        for word in text.split(" "):
            delta = llm.ChoiceDelta(role="assistant", content=word + " ")
            self._event_ch.send_nowait(llm.ChatChunk(id="scripted", delta=delta))
            await asyncio.sleep(script.word_s)


def make_llm() -> llm.LLM[Any]:
    """The LLM that the environment names, or the script."""
    url = os.environ.get("HIGGS_AGENT_LLM_URL")
    if not url:
        return ScriptedLLM(word_s=float(os.environ.get("HIGGS_AGENT_WORD_S", "0.01")))
    return _openai().LLM(
        base_url=url,
        model=os.environ.get("HIGGS_AGENT_LLM_MODEL", "gpt-4.1-mini"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )


def make_settings() -> higgs.SessionSettings:
    """What the voice remembers and how it is drawn, by the environment."""
    window, seed = _number("HIGGS_AGENT_WINDOW"), _number("HIGGS_AGENT_SEED")
    temperature = _number("HIGGS_AGENT_TEMPERATURE")
    sampling = higgs.Sampling()
    if temperature is not None:
        sampling = sampling.replace(temperature=temperature)
    if seed is not None:
        sampling = sampling.replace(seed=int(seed))
    settings = higgs.SessionSettings(sampling=sampling)
    return settings if window is None else settings.replace(window=higgs.Window.last_n(int(window)))


def _number(name: str, default: str = "") -> float | None:
    text = os.environ.get(name, default)
    try:
        return float(text) if text else None
    except ValueError as error:
        raise SystemExit(f"{name} is a number, not {text!r}") from error


def make_ears() -> dict[str, Any]:
    """Speech recognition as the environment names it. Without any, the caller's voice interrupts and nothing more: there will
    be no transcript to confirm that it was meant, so that the framework must not wait for one."""
    url = os.environ.get("HIGGS_AGENT_STT_URL")
    if not url:
        handling = {"turn_detection": "vad", "interruption": {"mode": "vad", "resume_false_interruption": False}}
        return {"turn_handling": handling}
    from livekit.agents import inference

    stt = _openai().STT(
        base_url=url,
        model=os.environ.get("HIGGS_AGENT_STT_MODEL", "whisper-1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    return {"stt": stt, "turn_handling": {"turn_detection": inference.TurnDetector(version="v1-mini")}}


def _openai() -> Any:
    try:
        return importlib.import_module("livekit.plugins.openai")
    except ImportError as error:
        raise SystemExit("an OpenAI-compatible LLM or STT needs: pip install livekit-plugins-openai") from error


class Assistant(Agent):
    def __init__(self, phone: PhoneSound | None = None) -> None:
        super().__init__(
            instructions="You answer the phone of a parcel service. Be brief and friendly. Use plain words."
        )
        self._phone = phone
        """The band and the level of a telephone, for a caller who is on one."""

    def tts_node(self, text: AsyncIterable[str], model_settings: ModelSettings) -> Any:
        frames = Agent.default.tts_node(self, text, model_settings)
        return frames if self._phone is None else phone_frames(frames, self._phone)

    async def on_enter(self) -> None:
        self.session.say(GREETING)

    async def on_user_turn_completed(self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage) -> None:
        if not (new_message.text_content or "").strip():
            raise StopResponse  # a voice was heard, and nobody knows what it said


SETTINGS = make_settings()  # here, so that a wrong one is told at the start and not to the first caller

server = AgentServer(num_idle_processes=1, host="127.0.0.1", port=0)
if MODEL.startswith(("ws://", "wss://")):
    # Calls go to the machines whose engine has room.
    server.load_fnc = higgs.EngineLoad(MODEL, token=os.environ.get("HIGGS_VOICE_TOKEN"))


@server.rtc_session()
async def entrypoint(ctx: JobContext) -> None:
    tts = higgs.TTS(
        model=MODEL,
        token=os.environ.get("HIGGS_VOICE_TOKEN"),
        voice=os.environ.get("HIGGS_AGENT_VOICE"),
        settings=SETTINGS,
    )
    session: AgentSession[None] = AgentSession(llm=make_llm(), tts=tts, **make_ears())
    # The caller may come back: the call ends with the room.
    options = room_io.RoomOptions(close_on_disconnect=False)
    # The console has no room and no participants.
    on_phone = not ctx.is_fake_job() and sip_caller(await ctx.wait_for_participant()) is not None
    assistant = Assistant(PhoneSound(rate_out=24_000) if on_phone else None)
    await session.start(assistant, room=ctx.room, room_options=options)
    higgs.attach(session)

    async def memory(asked: RpcInvocationData) -> str:
        voice = tts.conversation(session).session
        if voice is None:
            return json.dumps({"exchanges": []})
        if asked.payload:
            return base64.b64encode(voice.exchanges[int(asked.payload)].codes.astype("<i2").tobytes()).decode()
        exchanges = [{"text": item.text, "seconds": item.frames / 25} for item in voice.exchanges]
        return json.dumps({"session": voice.id, "exchanges": exchanges, "provisional": voice.stats.provisional})

    ctx.room.local_participant.register_rpc_method("higgs.memory", memory)
    ctx.add_shutdown_callback(tts.aclose)


def main() -> None:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command in ("dev", "start") and "--help" not in sys.argv:
        needed = ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET")
        options = ("--url", "--api-key", "--api-secret")
        missing = [
            name
            for name, option in zip(needed, options, strict=True)
            if not os.environ.get(name) and not any(word.split("=")[0] == option for word in sys.argv)
        ]
        if missing:
            raise SystemExit(
                f"{', '.join(missing)} must be set for a worker: `make livekit` starts a LiveKit server, an engine server and "
                "this worker here, and `console` talks without any server"
            )
    cli.run_app(server)


if __name__ == "__main__":
    main()
