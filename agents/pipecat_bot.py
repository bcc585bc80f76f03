"""A voice agent on Pipecat: speech or typed text in, one Higgs voice out, in the browser on this machine.

    python agents/pipecat_bot.py                 # then open http://localhost:7860/client
    python agents/pipecat_bot.py --model ws://localhost:8765 --speaker "masculine; calm"
    python agents/pipecat_bot.py --llm-url http://localhost:11434/v1 --llm-model llama3.2

Type to it, or talk, also while it speaks: it stops, and remembers what you heard. Speech is understood offline by
pocketsphinx, a recogniser of the year 2000: clear, simple English only; put another `STTService` in `ears`. Without
``--llm-url`` nothing is understood at all: a stand-in that answers from a few fixed sentences shows the voice.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMRunFrame,
    LLMTextFrame,
    TranscriptionFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner

from higgs_voice import SessionSettings, Synthesizer, Voice, Window, create_backend
from higgs_voice.adapters.pipecat import HiggsTTSService, PlayoutTracker
from higgs_voice.errors import SettingsError

STALL = "\u2404"
"""In a scripted reply: the LLM falls silent here."""
GREETING = "Hello, this is the voice of this room. Type something, or talk to me."
ANSWERS = (
    (
        "I see. I am a small voice without a mind behind it, so I can only tell you how I speak. Every sentence sounds like "
        "the ones before it, because I listen to what you have heard of me. Please, interrupt me whenever you like."
    ),
    (
        "That is good to know. If you talk over me, I stop at once, and what you did not hear is forgotten. Try it now: I will "
        "go on for a while, one sentence after the other, until you say something or until I run out of words."
    ),
    "Thank you. Connect a language model, and I will say what it has to say, word by word, as it comes.",
)


def agent(
    transport: BaseTransport,
    tts: HiggsTTSService,
    llm: FrameProcessor,
    *,
    context: LLMContext,
    ears: FrameProcessor | None = None,
) -> Pipeline:
    """The whole agent. A caller who speaks while it speaks is found by Silero VAD, and interrupts it."""
    talkers = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer(),
            user_turn_strategies=UserTurnStrategies(
                start=[VADUserTurnStartStrategy()],
                stop=[SpeechTimeoutUserTurnStopStrategy(wait_for_transcript=ears is not None)],
            ),
        ),
    )
    return Pipeline(
        [
            transport.input(),
            *([ears] if ears is not None else []),
            talkers.user(),
            llm,
            tts,
            transport.output(),
            PlayoutTracker(tts),
            talkers.assistant(),
        ]
    )


class ScriptedLLM(FrameProcessor):
    """Answers what it is asked from a function, streamed at the pace of an LLM."""

    def __init__(
        self,
        answer: Callable[[LLMContext], str],
        *,
        first_token_s: float = 0.3,
        tokens_per_s: float = 40.0,
        stall_s: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._answer = answer
        self._first_token_s = first_token_s
        self._token_s = 1.0 / tokens_per_s
        self._stall_s = stall_s

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        await self.push_frame(LLMFullResponseStartFrame())
        await asyncio.sleep(self._first_token_s)
        for token in re.findall(STALL + r"|\s*[^\s" + STALL + r"]{1,5}|\s+", self._answer(frame.context)):
            await asyncio.sleep(self._stall_s if token == STALL else self._token_s)
            if token != STALL:
                await self.push_frame(LLMTextFrame(token))
        await self.push_frame(LLMFullResponseEndFrame())


def stand_in(context: LLMContext) -> str:
    """A greeting, then the fixed answers in turn."""
    said = sum(message.get("role") == "assistant" for message in context.get_messages() if isinstance(message, dict))
    return GREETING if not said else ANSWERS[(said - 1) % len(ANSWERS)]


class PocketsphinxEars(SegmentedSTTService):
    """Speech to text offline by pocketsphinx: small, quick, and often wrong."""

    def __init__(self, **kwargs: Any) -> None:
        from pocketsphinx import Decoder

        super().__init__(
            settings=STTSettings(model="pocketsphinx en-us", language="en"), ttfs_p99_latency=1.0, **kwargs
        )
        self._decoder: Any = Decoder(samprate=16000, loglevel="FATAL")

    @property
    def wants_wav_segments(self) -> bool:
        return False

    def _hear(self, audio: bytes) -> str:
        self._decoder.start_utt()
        self._decoder.process_raw(audio, no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return str(found.hypstr) if found is not None else ""

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        try:
            text = await asyncio.to_thread(self._hear, audio)
        except RuntimeError as error:
            yield ErrorFrame(error=f"pocketsphinx could not take this: {error}")
            return
        if text:
            yield TranscriptionFrame(text, "caller", time_now_iso8601())


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A voice agent in Pipecat's own web client.")
    parser.add_argument("--model", default="nano", help="nano, a hub id, a folder, or ws://host:port of a server")
    parser.add_argument("--speaker", default="feminine", help="a description of the speaker")
    parser.add_argument(
        "--stt", choices=("pocketsphinx", "none"), default="pocketsphinx", help="who understands speech"
    )
    parser.add_argument("--temperature", type=float, help="unless given, what the model recommends")
    parser.add_argument("--window", type=int, default=5, help="exchanges in the context")
    parser.add_argument("--llm-url", help="an OpenAI-compatible server; without it a stand-in answers")
    parser.add_argument("--llm-model", default="default", help="the model's name there")
    parser.add_argument("--llm-key", default="none", help="the key it asks for, if any")
    return parser


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Errors: `SettingsError`."""
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise SettingsError(f"cannot listen on {host}:{port}: {reason}; choose another port") from error
    return listener


_engine: Synthesizer | None = None


async def bot(runner_args: RunnerArguments) -> None:
    """One caller; Pipecat's runner calls it for each who comes. They share one engine."""
    global _engine
    args = cast(argparse.Namespace, runner_args.cli_args) or options().parse_args([])
    if _engine is None:
        _engine = create_backend(args.model)
    transport = await create_transport(
        runner_args, {"webrtc": lambda: TransportParams(audio_in_enabled=True, audio_out_enabled=True)}
    )
    tts = HiggsTTSService(
        engine=_engine,
        voice=Voice.create(speakers=args.speaker),
        settings=HiggsTTSService.Settings(temperature=args.temperature),
        session_settings=SessionSettings(window=Window.last_n(args.window)),
    )
    llm: FrameProcessor = ScriptedLLM(stand_in)
    if args.llm_url:
        from pipecat.services.openai.llm import OpenAILLMService

        llm = OpenAILLMService(
            base_url=args.llm_url, api_key=args.llm_key, settings=OpenAILLMService.Settings(model=args.llm_model)
        )
    context = LLMContext(
        [
            {
                "role": "system",
                "content": "You speak with a caller. Answer in two or three short sentences, plain words only.",
            }
        ]
    )
    worker = PipelineWorker(
        agent(transport, tts, llm, context=context, ears=PocketsphinxEars() if args.stt == "pocketsphinx" else None),
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
        idle_timeout_secs=runner_args.pipeline_idle_timeout_secs,
    )

    @transport.event_handler("on_client_connected")
    async def on_connected(*_: Any) -> None:
        await worker.queue_frame(LLMRunFrame())

    @transport.event_handler("on_client_disconnected")
    async def on_disconnected(*_: Any) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=runner_args.handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


def main() -> None:
    global _engine
    from pipecat.runner.run import RUNNER_HOST, RUNNER_PORT
    from pipecat.runner.run import main as serve

    parser = options()
    if not {"-h", "--help"}.intersection(sys.argv):  # help is the runner's to print: it adds options of its own
        given, _ = parser.parse_known_args()
        place = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # the runner has these two itself
        place.add_argument("--host", default=RUNNER_HOST)
        place.add_argument("--port", type=int, default=RUNNER_PORT)
        where, _ = place.parse_known_args()
        try:
            listen(where.host, where.port).close()  # a port that is taken is said before anything is loaded
        except SettingsError as error:
            sys.exit(f"pipecat_bot: {error}")
        _engine = create_backend(given.model)  # the slow imports come before the first caller
    sys.argv[1:1] = ["--transport", "webrtc"]  # what `bot` has; without it the runner offers all that it knows
    serve(parser)


if __name__ == "__main__":
    main()
