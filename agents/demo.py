"""An agent's streamed text, spoken in one voice in a WebRTC room on this machine, with a barge-in; heard, and measured.

A scripted LLM streams three turns at an LLM's pace (300 ms to the first token, 40 tokens a second, one stall of 2 s) into
the agent of `pipecat_bot`. Its room is WebRTC over loopback: ICE, DTLS, Opus. A second peer, in a process of its own,
records what it hears, and in turn 2 talks over the agent in the model's other voice; Silero VAD on the agent's side finds
that. Nothing is scripted there. Leaves out/demo.wav (what was heard) and out/demo.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import demo_listener
import demo_report
import numpy as np
from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner
from pipecat_bot import STALL, ScriptedLLM, agent
from rich.console import Console

from higgs_voice import (
    ChunkReport,
    HiggsVoiceError,
    Sampling,
    SessionSettings,
    Synthesizer,
    Voice,
    VoiceSession,
    Window,
    create_backend,
)
from higgs_voice.adapters.pipecat import HiggsTTSService
from higgs_voice.audio import to_int16, write_wav
from higgs_voice.heap import settled

SCRIPT = (
    (
        "Hello, and thank you for calling our store today. Please wait a moment while I look for your order. "
        f"{STALL}I have found it, and it was sent to you this morning. It will be with you on Friday afternoon."
    ),
    (
        "I speak one sentence after the other, as the words come in. The voice of each one follows from what you have heard "
        "so far. While I am speaking, I am also listening to you. You can talk over me at any time, and I stop at once. What "
        "you did not hear of me is then forgotten. After that I go on from the place where you stopped me."
    ),
    "I have stopped at the place where you began to speak. I remember what you have heard, and nothing more than that.",
)
SHORT = (
    f"Hello, and thank you for calling our store today. {STALL}I have found the order that you were asking for.",
    SCRIPT[1],
    "I have stopped at the place where you began to speak.",
)
QUESTION = "Can you tell me how you speak?"
CALLER = "Sorry, can you stop there, please?"
AFTER_STALL = "I have found"


class DemoError(Exception):
    """Something that must work did not; the message says what."""


class Notes(BaseObserver):
    """What went through the pipeline, and when."""

    def __init__(self, tts: HiggsTTSService) -> None:
        super().__init__(observe_every_push=False)
        self.turns: list[demo_report.Said] = []
        self.contexts: list[tuple[float, int, float]] = []
        self.errors: list[str] = []
        self.remembered: list[str] = []
        """The voice's context at the beginning of each turn."""
        self.interrupted_at: float | None = None
        self.vad_at: float | None = None
        self.started = 0
        self.stopped = 0
        self.changed = asyncio.Event()
        self._tts = tts
        self._context_ids: list[str | None] = []
        self._waiting: list[ChunkReport] = []
        tts.add_event_handler("on_chunk", self.on_chunk)

    async def on_chunk(self, _: HiggsTTSService, report: ChunkReport) -> None:
        """A chunk's generation has ended. The first may end before its sound has left the service."""
        if self.turns and len(self.turns) == self.turn:
            self.turns[-1].reports.append(report)
        else:
            self._waiting.append(report)
        stats = self._tts.session.stats
        self.contexts.append((time.time(), stats.exchanges, stats.context_s))

    turn = 0
    """The turn that the LLM is at."""

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        if isinstance(frame, TTSAudioRawFrame):
            if data.source is self._tts:
                self._sound(frame)
            return
        if isinstance(frame, ErrorFrame):
            self.errors.append(frame.error)
        elif data.direction == FrameDirection.UPSTREAM:
            return  # the twin of one that goes down
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self.vad_at = self.vad_at or time.time()
        elif isinstance(frame, InterruptionFrame) and self.turn >= 2 and self.interrupted_at is None:
            self.interrupted_at = time.time()
            if self.turns:
                self.turns[-1].cut = True
        elif isinstance(frame, BotStartedSpeakingFrame):
            self.started += 1
        elif isinstance(frame, BotStoppedSpeakingFrame):
            self.stopped += 1
        self.changed.set()

    def _sound(self, frame: TTSAudioRawFrame) -> None:
        if not self._context_ids or self._context_ids[-1] != frame.context_id:
            self._context_ids.append(frame.context_id)
            self.turns.append(
                demo_report.Said(self.turn, time.time(), stalled_before=AFTER_STALL if self.turn == 1 else "")
            )
            self.turns[-1].reports.extend(self._waiting)
            self._waiting.clear()
        self.turns[-1].sound += frame.audio

    async def until(self, ready: Callable[[], bool], seconds: float, failure: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not ready():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            why = f": {'; '.join(self.errors)}" if self.errors else ""
            raise DemoError(f"{failure} within {seconds:.0f} s{why}") from None


class Listener:
    """The second peer's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def told(self, key: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next line that has this key."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                while line := await self._process.stdout.readline():
                    message: dict[str, Any] = json.loads(line)
                    if key in message:
                        return message
        except TimeoutError:
            pass
        raise DemoError(f"the listening peer did not answer ({key}) within {seconds:.0f} s")

    async def tell(self, **message: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def listening() -> AsyncGenerator[Listener]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("demo_listener.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
        start_new_session=True,  # a terminal's Ctrl-C is for the demo alone, which ends the listener
    )
    try:
        yield Listener(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def line_of_the_caller(engine: Synthesizer, path: Path, speaker: str) -> None:
    """What the second peer will say, spoken by the engine's other voice."""
    settings = SessionSettings(sampling=Sampling(seed=7))
    async with VoiceSession(engine, voice=Voice.create(speakers=speaker), settings=settings) as session:
        pcm = await session.speak(CALLER).collect()
    sound = np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768.0
    if not sound.size or float(np.abs(sound).max()) < 0.01:
        raise DemoError("the engine gave no sound for the caller's line")
    write_wav(path, to_int16(sound * (0.9 / float(np.abs(sound).max()))).tobytes())


async def run(args: argparse.Namespace, console: Console, out: Path) -> None:
    logger.remove()
    logger.add(out / "demo.log", level="DEBUG", mode="w")
    demo_listener.stay_on_loopback()
    began = time.monotonic()
    engine = create_backend(args.model)
    try:
        with console.status(f"loading {args.model} and warming it up"):
            await engine.start()
            await line_of_the_caller(engine, out / "caller.wav", args.other_speaker)
        console.print(f"{engine.info.model} is ready after {time.monotonic() - began:.1f} s")
        async with listening() as listener:
            with settled():
                await room(args, engine, listener, console, out)
    finally:
        await engine.aclose()


async def room(args: argparse.Namespace, engine: Synthesizer, listener: Listener, console: Console, out: Path) -> None:
    script = SHORT if args.short else SCRIPT
    tts = HiggsTTSService(
        engine=engine,
        voice=Voice.create(speakers=args.speaker),
        settings=HiggsTTSService.Settings(temperature=args.temperature, seed=args.seed),
        session_settings=SessionSettings(window=Window.last_n(args.window)),
    )
    notes = Notes(tts)

    def next_turn(_: LLMContext) -> str:
        notes.turn += 1
        notes.remembered.append(tts.session.context_text)
        console.print(
            f"[bold]turn {notes.turn}[/bold]  {script[min(notes.turn, 3) - 1].replace(STALL, '[dim](2 s of silence)[/dim] ')}"
        )
        return script[min(notes.turn, 3) - 1]

    offer = (await listener.told("offer"))["offer"]
    connection = SmallWebRTCConnection()
    await connection.initialize(sdp=offer, type="offer")
    transport = SmallWebRTCTransport(connection, TransportParams(audio_in_enabled=True, audio_out_enabled=True))
    context = LLMContext()
    worker = PipelineWorker(
        agent(transport, tts, ScriptedLLM(next_turn), context=context),
        params=PipelineParams(enable_metrics=True),
        observers=[notes],
        enable_rtvi=False,
        cancel_on_idle_timeout=False,
    )
    connected = asyncio.Event()

    @transport.event_handler("on_client_connected")
    async def on_connected(*_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connected.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        answer = connection.get_answer()
        assert answer is not None
        await listener.tell(answer=answer["sdp"])
        try:
            await asyncio.wait_for(connected.wait(), 20)
        except TimeoutError:
            raise DemoError("no WebRTC connection came about on loopback within 20 s") from None
        console.print("[dim]connected: ICE, DTLS and Opus over loopback[/dim]")
        caller = await converse(worker, notes, listener, out / "caller.wav", 1.5 if args.short else 3.5)
        packets = out / "packets.npz"
        await listener.tell(leave=str(packets))
        await listener.told("left")
        stats = tts.session.stats
        notes.contexts.append((time.time(), stats.exchanges, stats.context_s))
        remembered = tts.session.context_text
        messages = [item for item in context.get_messages() if isinstance(item, dict)]
        said = [str(item.get("content")) for item in messages if item.get("role") == "assistant"]
    finally:
        await worker.cancel()
        await asyncio.wait_for(running, 20)
    for turn in notes.turns:
        if turn.cut and len(said) == notes.turn:
            turn.heard = said[turn.turn - 1]
    report(console, notes, packets, caller, out)
    compare(console, "after the barge-in", notes.turns, said[:-1], notes.remembered[-1])  # as the last turn began
    compare(console, "at the end", notes.turns, said, remembered)
    if notes.errors:
        raise DemoError("; ".join(notes.errors))


async def converse(
    worker: PipelineWorker, notes: Notes, listener: Listener, line: Path, listen_s: float
) -> tuple[float, float]:
    """Three turns; when the caller's voice began, and how long it went on."""
    await worker.queue_frame(LLMRunFrame())
    await notes.until(lambda: notes.stopped == 1, 90, "turn 1 was not spoken")
    await asyncio.sleep(0.8)
    await worker.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": QUESTION}], run_llm=True))
    await notes.until(lambda: notes.started == 2, 20, "turn 2 did not begin")
    await asyncio.sleep(listen_s)
    await listener.tell(say=str(line))
    spoken = await listener.told("speaking")
    await notes.until(lambda: notes.interrupted_at is not None, 10, "Silero VAD did not find the caller's voice")
    await notes.until(lambda: notes.turn == 3 and notes.started == 3, 20, "turn 3 did not begin")
    await notes.until(lambda: notes.stopped == 3, 60, "turn 3 was not spoken to its end")
    await asyncio.sleep(0.6)
    return float(spoken["speaking"]), float(spoken["seconds"])


def report(console: Console, notes: Notes, packets: Path, caller: tuple[float, float], out: Path) -> None:
    with np.load(packets) as data:
        arrivals, sounds = data["arrivals"], data["sounds"]
    packets.unlink()
    if not len(arrivals):
        raise DemoError("the listening peer received nothing")
    recording = demo_report.play(arrivals, sounds)
    write_wav(out / "demo.wav", to_int16(recording.sound).tobytes())
    findings = demo_report.measure(notes.turns, recording, caller[0])
    demo_report.print_table(console, notes.turns)
    found = sum(map(len, findings.spots.values()))
    if not found:
        raise DemoError("nothing that was said is in the recording")
    assert notes.interrupted_at is not None
    silence_s, sure_s = findings.silence_s or 0.0, notes.interrupted_at - caller[0]
    console.print(
        f"barge-in to silence      {silence_s * 1000:4.0f} ms in the recording, from the caller's first sound"
    )
    console.print(
        f"  of which Silero VAD    {sure_s * 1000:4.0f} ms until it was sure"
        if silence_s >= sure_s
        else f"  (the agent was between two sentences already when Silero VAD was sure, after {sure_s * 1000:.0f} ms)"
    )
    colour = "green" if findings.gap_s <= 0.02 else "red"
    console.print(
        f"longest gap in speech    [{colour}]{findings.gap_s * 1000:4.0f} ms[/{colour}] in the recording"
        + (f", at {findings.gap_at_s:.1f} s: this machine was too busy" if findings.gap_s > 0.02 else "")
    )
    console.print(f"pause by the LLM's stall {findings.stall_s * 1000:4.0f} ms of its 2000; speech covered the rest")
    demo_report.draw(out / "demo.png", notes.turns, recording, findings, notes.contexts, caller)
    console.print(f"[bold]{out / 'demo.wav'}[/bold] is what was heard, [bold]{out / 'demo.png'}[/bold] shows it")
    (out / "demo.json").write_text(
        json.dumps(
            {
                "silence_ms": round((findings.silence_s or 0) * 1000),
                "vad_ms": round((notes.interrupted_at - caller[0]) * 1000),
                "gap_ms": round(findings.gap_s * 1000, 1),
                "stall_ms": round(findings.stall_s * 1000),
                "ttfa_ms": [round(item.ttfa_s * 1000) for said in notes.turns for item in said.reports],
                "rtf": [
                    round(item.total_s / item.audio_s, 3)
                    for said in notes.turns
                    for item in said.reports
                    if item.audio_s
                ],
            }
        )
    )


def compare(console: Console, when: str, turns: list[demo_report.Said], said: list[str], remembered: str) -> None:
    """The voice's context must hold the last words of the LLM's, as many as its window takes, but for what a guard kept out."""
    theirs = " ".join(said)
    for chunk in (chunk for turn in turns for chunk in turn.reports if chunk.reason.guarded):
        console.print(
            f"[yellow]a guard ended this chunk, so that the voice forgets it ({chunk.error}):[/yellow] {chunk.written.strip()}"
        )
        theirs = theirs.replace(chunk.written.strip(), "")
    ours, theirs = " ".join(re.findall(r"\w+", remembered)), " ".join(re.findall(r"\w+", theirs))
    if not ours or not theirs.endswith(ours):
        raise DemoError(f"the voice remembers {ours!r}, the LLM {theirs!r}")
    words = ours.split()
    shown = f"… {' '.join(words[-8:])}" if len(words) > 8 else ours
    heard = len(theirs.split())
    count = f"last {len(words)} of {heard}" if heard > len(words) else str(heard)
    why = "; what was heard before has left the voice's window" if heard > len(words) else ""
    console.print(f"{when}, voice and LLM remember the same {count} words: [italic]{shown}[/italic]{why}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="nano", help="nano, a hub id, a folder, or ws://host:port of a server")
    parser.add_argument("--speaker", default="feminine", help="the agent's voice")
    parser.add_argument("--other-speaker", default="masculine", help="the caller's voice")
    parser.add_argument("--temperature", type=float, help="unless given, what the model recommends")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", type=int, default=5, help="exchanges in the context")
    parser.add_argument("--short", action="store_true", help="a shorter script")
    parser.add_argument("--out", default="out", help="the folder for demo.wav and demo.png")
    args = parser.parse_args()
    console = Console()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(run(args, console, out))
    except (DemoError, HiggsVoiceError) as error:
        console.print(f"[red]The demo failed:[/red] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
