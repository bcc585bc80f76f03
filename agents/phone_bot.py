"""A voice agent on the telephone: Twilio, Telnyx, Plivo or Exotel stream a call's sound to it, and it answers in one voice.

    python agents/phone_bot.py --public-url https://bot.example.com      # or: make phone
    python agents/phone_bot.py --model ws://localhost:8765 --llm-url http://localhost:11434/v1 --llm-model llama3.2

A provider asks `/answer/twilio` (or telnyx, plivo, exotel) what to do with a call and is told to stream it to `/call/...`; the
way from a number to a talking bot is in docs/phone.md. Requests must be signed by the provider; what it signs with is read
from the environment, and a provider without it is turned away:

    TWILIO_AUTH_TOKEN   PLIVO_AUTH_TOKEN   TELNYX_PUBLIC_KEY   EXOTEL_TOKEN (a secret of your own, in the answer URL)
    HIGGS_PHONE_SECRET  signs the stream's URL; the same for all workers behind one address (default: made at the start)

The caller may talk over the voice: it stops at once, and remembers what the line has played. Keys of the telephone come to
the LLM as "DTMF: 12#". Speech is understood offline by pocketsphinx (put a better `STTService` in `ears`), and without
``--llm-url`` a stand-in answers from fixed sentences.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import phone_webhooks
import soxr
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADState
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    TranscriptionFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.dtmf_aggregator import DTMFAggregator
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.turns.user_start import TranscriptionUserTurnStartStrategy, VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner
from pipecat_bot import ANSWERS, PocketsphinxEars, ScriptedLLM, listen

from higgs_voice import Sampling, SessionSettings, Synthesizer, Voice, Window, create_backend
from higgs_voice.adapters.phone import PROVIDERS, PhoneBand, PhoneCall, PhoneTransport, take_call
from higgs_voice.adapters.pipecat import HiggsTTSService, PlayoutTracker
from higgs_voice.adapters.telephony import PHONE_RATE, PhoneSettings
from higgs_voice.errors import HiggsVoiceError, ProtocolError
from higgs_voice.heap import settled

MOST_BODY = 2**16  # bytes of a webhook's request, before its signature is looked at
LEAVE_S = 5
"""How long the server's end waits for calls to end."""
LAST_CUT_S = 2.0
"""How long the record of a call that is over waits for what was being said to be cut."""
GREETING = "Hello, this is the voice of this line. Say something, or press a key."
INSTRUCTIONS = (
    "You are on the telephone with a caller. Answer in two or three short sentences, in plain words that can be spoken. "
    "A message that begins with DTMF holds the keys that the caller pressed."
)


@dataclass(frozen=True, slots=True)
class Options:
    """How the bot answers."""

    speaker: str = "feminine"
    temperature: float | None = None
    window: int = 5
    stt: str = "pocketsphinx"
    """Who understands speech: "pocketsphinx", or "none": it is noted only that there was some."""
    llm_url: str | None = None
    llm_model: str = "default"
    llm_key: str = "none"
    public_url: str | None = None
    """Where providers reach this server; None: as each request says."""
    most_calls: int = 8
    phone: PhoneSettings = field(default_factory=PhoneSettings)
    credentials: Mapping[str, str] = field(default_factory=dict[str, str])
    """By provider, what its requests are checked with."""
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    unsigned: bool = False
    """Take requests of anybody: for trying things out on one machine."""


@dataclass(slots=True)
class Live:
    """One call that is going on."""

    call: PhoneCall
    transport: PhoneTransport
    tts: HiggsTTSService
    worker: PipelineWorker
    talkers: LLMContextAggregatorPair
    context: LLMContext
    began: float
    noted: bool = False

    async def hang_up(self, words: str = "") -> None:
        """The bot ends the call: what is being said, and these words, are played to their end first."""
        if words:
            await self.worker.queue_frame(TTSSpeakFrame(words))
        await self.worker.queue_frame(EndFrame())


@dataclass(frozen=True, slots=True)
class Ended:
    """One call that is over."""

    call: PhoneCall
    seconds: float
    transcript: tuple[tuple[str, str], ...]
    """(role, what was said), the agent's as far as the caller has heard it."""
    remembered: tuple[str, ...]
    """The texts in the voice's context at the end."""


class PhoneBot:
    """Answers calls, all on one engine.

    Args:
        answer: for the stand-in LLM: from the context to what is said.
    """

    def __init__(
        self, engine: Synthesizer, options: Options | None = None, *, answer: Callable[[LLMContext], str] | None = None
    ) -> None:
        self.engine = engine
        self.options = options or Options()
        self.answer = answer or stand_in
        self.calls: dict[str, Live] = {}
        self.ended: deque[Ended] = deque(maxlen=100)
        self.on_call: list[Callable[[Live], None]] = []
        """Called when a call's pipeline is ready to run."""
        self._open = 0

    @property
    def failure(self) -> HiggsVoiceError | None:
        """Why the engine speaks nothing more, if it is dead for good."""
        return getattr(self.engine, "failure", None)

    @property
    def full(self) -> bool:
        return self._open >= self.options.most_calls

    async def serve(self, websocket: WebSocket) -> None:
        """One websocket of a provider, from its acceptance to its end."""
        self._open += 1
        try:
            await websocket.accept()
            try:
                call = await take_call(websocket, self.options.phone)
            except ProtocolError as error:
                logger.error(str(error))
                await websocket.close(1002, "no call")
                return
            await self._talk(websocket, call)
        finally:
            self._open -= 1

    async def _talk(self, websocket: WebSocket, call: PhoneCall) -> None:
        # Loading it takes a tenth of a second, which the calls that are going on do not have.
        vad = await asyncio.to_thread(LineVAD)
        live = self._live(websocket, call, vad)
        self.calls[call.stream_id] = live
        logger.info(f"{call} from {call.caller or 'unknown'}: answered")
        runner = WorkerRunner(handle_sigint=False)
        try:
            for told in self.on_call:
                told(live)
            await runner.add_workers(live.worker)
            await runner.run()
        finally:
            del self.calls[call.stream_id]

    def _live(self, websocket: WebSocket, call: PhoneCall, vad: VADAnalyzer) -> Live:
        transport = PhoneTransport(websocket, call, self.options.phone)
        tts = HiggsTTSService(
            engine=self.engine,
            voice=Voice.create(speakers=self.options.speaker),
            settings=HiggsTTSService.Settings(temperature=self.options.temperature),
            session_settings=SessionSettings(window=Window.last_n(self.options.window)),
        )
        context = LLMContext([{"role": "system", "content": INSTRUCTIONS}])
        ears = PhoneEars() if self.options.stt == "pocketsphinx" else DeafEars()
        talkers = _talkers(context, vad)
        worker = PipelineWorker(
            Pipeline(
                [
                    transport.input(),
                    DTMFAggregator(),
                    ears,
                    talkers.user(),
                    Heard(),
                    self._llm(),
                    tts,
                    PhoneBand(self.options.phone),
                    transport.output(),
                    transport.gate(),
                    PlayoutTracker(tts),
                    talkers.assistant(),
                ]
            ),
            params=PipelineParams(audio_in_sample_rate=PHONE_RATE, enable_metrics=True, enable_usage_metrics=True),
            enable_rtvi=False,
            enable_turn_tracking=False,
        )
        live = Live(call, transport, tts, worker, talkers, context, time.monotonic())
        cut = asyncio.Event()
        worker.add_reached_downstream_filter((InterruptionFrame,))

        @worker.event_handler("on_frame_reached_downstream")
        async def on_cut(*_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            cut.set()

        @transport.event_handler("on_client_connected")
        async def on_connected(*_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            await worker.queue_frame(LLMRunFrame())

        @transport.event_handler("on_client_disconnected")
        async def on_disconnected(*_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            # What was being said is cut where the line stopped playing, so that the record is of what was heard: it is whole
            # when the cut has come to the pipeline's end, behind who writes it.
            cut.clear()
            if transport.hanging_up:
                # The bot was saying its last words: a pipeline that ends takes nothing from its worker any more.
                tts.interrupt(everything=True)
                await transport.gate().cut()
                await transport.gate().push_frame(InterruptionFrame())
            else:
                await worker.queue_frame(InterruptionFrame())
            with suppress(TimeoutError):
                await asyncio.wait_for(cut.wait(), LAST_CUT_S)
            await asyncio.sleep(0.05)  # the record's own events follow it
            self._note(live)
            if transport.hanging_up:
                await transport.input().push_frame(CancelFrame())
            await worker.cancel()

        @worker.event_handler("on_pipeline_finished")
        async def on_finished(_: Any, frame: Frame) -> None:  # pyright: ignore[reportUnusedFunction]
            if isinstance(frame, EndFrame):  # the bot has hung up; the session lives until this has returned
                self._note(live)

        return live

    def _llm(self) -> FrameProcessor:
        options = self.options
        if not options.llm_url:
            return ScriptedLLM(self.answer)
        from pipecat.services.openai.llm import OpenAILLMService

        return OpenAILLMService(
            base_url=options.llm_url,
            api_key=options.llm_key,
            settings=OpenAILLMService.Settings(model=options.llm_model),
        )

    def _note(self, live: Live) -> None:
        if live.noted:
            return
        live.noted = True
        transcript = tuple(
            (str(message["role"]), str(message.get("content", "")))
            for message in live.context.get_messages()
            if isinstance(message, dict) and message.get("role") != "system"
        )
        try:
            remembered = tuple(item.text for item in live.tts.session.exchanges)
        except HiggsVoiceError:  # the engine never came
            remembered = ()
        seconds = time.monotonic() - live.began
        self.ended.append(Ended(live.call, seconds, transcript, remembered))
        logger.info(f"{live.call}: over after {seconds:.1f} s, {len(transcript)} turns")


def _talkers(context: LLMContext, vad: VADAnalyzer) -> LLMContextAggregatorPair:
    """Turns: begun by the caller's voice (or by keys, which come as a transcript), ended by silence."""
    return LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=vad,
            user_turn_strategies=UserTurnStrategies(
                start=[VADUserTurnStartStrategy(), TranscriptionUserTurnStartStrategy()],
                stop=[SpeechTimeoutUserTurnStopStrategy()],
            ),
        ),
    )


class LineVAD(SileroVADAnalyzer):
    """Silero at 8 kHz, in the event loop: its third of a millisecond for 32 ms of sound is less than the way to a thread and back,
    and on a busy machine a caller is noticed no later for want of a turn."""

    async def analyze_audio(self, buffer: bytes) -> VADState:
        return self._run_analyzer(buffer)


class Heard(FrameProcessor):
    """Behind who listens nobody needs the caller's sound: 50 frames a second that the rest of the pipeline is spared."""

    def __init__(self) -> None:
        super().__init__(enable_direct_mode=True)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, InputAudioRawFrame):
            await self.push_frame(frame, direction)


class PhoneEars(PocketsphinxEars):
    """pocketsphinx on a telephone line: its model is of 16 kHz."""

    def _hear(self, audio: bytes) -> str:
        wide = soxr.resample(np.frombuffer(audio, dtype="<i2"), self.sample_rate, 16000)
        return super()._hear(wide.astype("<i2").tobytes())


class DeafEars(SegmentedSTTService):
    """Notes that the caller spoke, not what was said."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(settings=STTSettings(model="none", language="en"), ttfs_p99_latency=0.1, **kwargs)

    @property
    def wants_wav_segments(self) -> bool:
        return False

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        yield TranscriptionFrame("(the caller spoke)", "caller", time_now_iso8601())


def stand_in(context: LLMContext) -> str:
    """A greeting; then what keys were pressed, or the fixed answers in turn."""
    messages = [message for message in context.get_messages() if isinstance(message, dict)]
    said = sum(message.get("role") == "assistant" for message in messages)
    if not said:
        return GREETING
    asked = str(messages[-1].get("content", ""))
    if asked.startswith("DTMF:"):
        return f"You have pressed {' '.join(asked.removeprefix('DTMF:').strip())}."
    return ANSWERS[(said - 1) % len(ANSWERS)]


# The web side


def create_app(bot: PhoneBot) -> FastAPI:
    """`/answer/{provider}` for the provider's webhook, `/call/{provider}/{pass}` for its media stream, `/health`."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        await bot.engine.start()  # the model is loaded before the first call comes
        yield

    app = FastAPI(title="higgs-voice phone bot", lifespan=life, openapi_url=None)
    options = bot.options

    @app.api_route("/answer/{provider}", methods=["GET", "POST"])
    async def answer(provider: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        if provider not in PROVIDERS:
            return Response(f"no such provider: {provider}; there are {', '.join(PROVIDERS)}\n", 404)
        length = request.headers.get("content-length", "0" if request.method == "GET" else "")
        if not length.isdigit() or int(length) > MOST_BODY:
            return Response(f"a request needs a Content-Length of at most {MOST_BODY} bytes\n", 413)
        body = await request.body()
        refusal = _refusal(options, provider, request, body)
        if refusal:
            logger.warning(f"a request to /answer/{provider} is refused: {refusal}")
            return Response(f"{refusal}\n", 403)
        if bot.full or bot.failure is not None:
            why = bot.failure or f"{options.most_calls} calls are going on"
            logger.warning(f"a call of {provider} is turned away: {why}")
            text, kind, status = phone_webhooks.busy(provider)
            return Response(text, status, media_type=kind)
        fields = dict(_fields(request, body))
        parameters = {"from_number": fields.get("From", ""), "to_number": fields.get("To", "")}
        base = _base(options, request)
        url = (
            "ws"
            + base.removeprefix("http")
            + f"/call/{provider}/{phone_webhooks.stream_pass(options.secret, provider)}"
        )
        text, kind = phone_webhooks.answer(provider, url, {key: value for key, value in parameters.items() if value})
        return Response(text, media_type=kind)

    @app.websocket("/call/{provider}/{ticket}")
    async def call(websocket: WebSocket, provider: str, ticket: str) -> None:  # pyright: ignore[reportUnusedFunction]
        if not phone_webhooks.is_stream_pass(options.secret, provider, ticket):
            logger.warning(f"a media stream of {provider} is refused: its pass is not ours, or too old")
            await websocket.close(1008)
        elif provider == "twilio" and not _twilio_signed(options, websocket):
            logger.warning("a media stream of twilio is refused: the signature is not Twilio's")
            await websocket.close(1008)
        elif bot.full:
            logger.warning(f"a media stream of {provider} is refused: {options.most_calls} calls are going on")
            await websocket.close(1013)
        else:
            await bot.serve(websocket)

    @app.get("/health")
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction]
        told = {"calls": len(bot.calls), "most_calls": options.most_calls, "model": bot.engine.info.model}
        if bot.failure is not None:
            return JSONResponse(told | {"error": str(bot.failure)}, 503)
        return JSONResponse(told)

    return app


def _base(options: Options, request: Request | WebSocket) -> str:
    if options.public_url:
        return options.public_url.rstrip("/")
    secure = request.headers.get("x-forwarded-proto", request.url.scheme) in ("https", "wss")
    return f"{'https' if secure else 'http'}://{request.headers.get('host', 'localhost')}"


def _fields(request: Request, body: bytes) -> list[tuple[str, str]]:
    form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    posted = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True) if form else []
    return [*parse_qsl(request.url.query, keep_blank_values=True), *posted]


def _refusal(options: Options, provider: str, request: Request, body: bytes) -> str:
    """Why a request is not the provider's; empty if it is."""
    if options.unsigned:
        return ""
    key = options.credentials.get(provider)
    if not key:
        return f"{provider} is not set up here"
    query = request.url.query
    url = _base(options, request) + request.url.path + (f"?{query}" if query else "")
    posted = _fields(request, body)[len(parse_qsl(query, keep_blank_values=True)) :]
    if provider == "twilio":
        signed = phone_webhooks.signed_by_twilio(key, request.headers, url, posted)
    elif provider == "plivo":
        signed = phone_webhooks.signed_by_plivo(key, request.headers, url, posted, request.method)
    elif provider == "telnyx":
        signed = phone_webhooks.signed_by_telnyx(key, request.headers, body)
    else:
        signed = secrets.compare_digest(request.query_params.get("token", "").encode(), key.encode())
        return "" if signed else "the token in the URL is wrong"
    return "" if signed else "the signature is missing or wrong"


def _twilio_signed(options: Options, websocket: WebSocket) -> bool:
    """Twilio signs the opening of the stream too; what says so must be right."""
    key = options.credentials.get("twilio")
    if options.unsigned or not key or "x-twilio-signature" not in websocket.headers:
        return True  # the pass in the URL came with a signed answer
    url = "ws" + _base(options, websocket).removeprefix("http") + websocket.url.path
    return any(phone_webhooks.signed_by_twilio(key, websocket.headers, one, ()) for one in (url, url + "/"))


class _Server(uvicorn.Server):
    """A signal ends it, and is not raised again behind it; the second one does not wait for the calls to end."""

    on_ready: Callable[[], None] | None = None
    """Called when it answers."""
    failed: Callable[[], bool] = staticmethod(lambda: False)
    """Asked now and then; true ends it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.failed()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_ready is not None:
            self.on_ready()


async def serve(bot: PhoneBot, listener: socket.socket, on_ready: Callable[[], None] | None = None) -> None:
    """Answer calls until SIGINT or SIGTERM, or until the engine is dead; then end them, and the engine. Errors: the engine's."""
    try:
        await bot.engine.start()
        server = _Server(uvicorn.Config(create_app(bot), log_level="warning", timeout_graceful_shutdown=LEAVE_S))
        server.on_ready = on_ready
        server.failed = lambda: bot.failure is not None
        with settled():
            await server.serve([listener])
        if bot.failure is not None:
            raise bot.failure
        logger.info("stopped")
    finally:
        await bot.engine.aclose()


CREDENTIALS = {
    "twilio": "TWILIO_AUTH_TOKEN",
    "plivo": "PLIVO_AUTH_TOKEN",
    "telnyx": "TELNYX_PUBLIC_KEY",
    "exotel": "EXOTEL_TOKEN",
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A voice agent on the telephone.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--public-url", default=os.environ.get("HIGGS_PHONE_URL"), help="where providers reach this server"
    )
    parser.add_argument("--model", default="nano", help="nano, a hub id, a folder, or ws://host:port of a server")
    parser.add_argument("--speaker", default="feminine", help="a description of the speaker")
    parser.add_argument("--temperature", type=float, help="unless given, what the model recommends")
    parser.add_argument("--window", type=int, default=5, help="exchanges in the context")
    parser.add_argument("--stt", choices=("pocketsphinx", "none"), default="pocketsphinx")
    parser.add_argument("--llm-url", help="an OpenAI-compatible server; without it a stand-in answers")
    parser.add_argument("--llm-model", default="default", help="the model's name there")
    parser.add_argument(
        "--llm-key", default=os.environ.get("OPENAI_API_KEY", "none"), help="the key it asks for, if any"
    )
    parser.add_argument("--most-calls", type=int, default=8, help="further ones are told that the line is busy")
    parser.add_argument("--prebuffer", type=float, default=0.2, help="seconds of jitter to ride out")
    parser.add_argument("--level", type=float, default=-20.0, help="active speech level, dB of full scale")
    parser.add_argument(
        "--unsigned", action="store_true", help="take unsigned requests, of anybody: for trials on this machine"
    )
    return parser


def main() -> None:
    given = arguments().parse_args()
    credentials = {provider: os.environ[name] for provider, name in CREDENTIALS.items() if os.environ.get(name)}
    if not credentials and not given.unsigned:
        names = ", ".join(CREDENTIALS.values())
        sys.exit(
            f"phone_bot: no provider is set up: set one of {names}, or try --unsigned on this machine (docs/phone.md)"
        )
    if given.public_url and not given.public_url.startswith(("https://", "http://")):
        sys.exit(f"phone_bot: --public-url is where providers reach this server, https://…, not {given.public_url!r}")
    try:
        phone = PhoneSettings(prebuffer_s=given.prebuffer, level_dbfs=given.level)
        SessionSettings(window=Window.last_n(given.window), sampling=Sampling(temperature=given.temperature))
    except ValueError as error:
        sys.exit(f"phone_bot: {error}")
    try:
        if "telnyx" in credentials:
            phone_webhooks.signed_by_telnyx(credentials["telnyx"], {}, b"")
    except ValueError as error:
        sys.exit(f"phone_bot: TELNYX_PUBLIC_KEY is no public key as Telnyx shows it, base64 of 32 bytes: {error}")
    options = Options(
        speaker=given.speaker,
        temperature=given.temperature,
        window=given.window,
        stt=given.stt,
        llm_url=given.llm_url,
        llm_model=given.llm_model,
        llm_key=given.llm_key,
        public_url=given.public_url,
        most_calls=given.most_calls,
        phone=phone,
        credentials=credentials,
        secret=os.environ.get("HIGGS_PHONE_SECRET") or secrets.token_hex(16),
        unsigned=given.unsigned,
    )
    try:
        # A port that is taken is said before the model is loaded, which takes long.
        listener = listen(given.host, given.port)
        where = given.public_url or f"http://{given.host}:{listener.getsockname()[1]}"

        def ready() -> None:
            for provider in PROVIDERS if given.unsigned else credentials:
                token = "?token=..." if provider == "exotel" else ""
                logger.info(f"{provider}: let the number ask {where}/answer/{provider}{token}")

        logger.info(f"loading {given.model} …")
        asyncio.run(serve(PhoneBot(create_backend(given.model), options), listener, ready))
    except HiggsVoiceError as error:
        sys.exit(f"phone_bot: {error}")
    except KeyboardInterrupt:  # while the model was loading
        sys.exit(130)


if __name__ == "__main__":
    main()
