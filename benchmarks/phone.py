"""A telephone call: what the line adds to the engine, how a barge-in is taken, what is remembered, what is understood.

    python benchmarks/phone.py [--turns 20] [--provider twilio] [--model nano] [--json]
    python benchmarks/phone.py --words [--speech espeak.wav ...]

The bot of agents/phone_bot.py runs in this process, the provider and its caller (tests/e2e/phone_line.py) in another, on
loopback; every packet has its time by the same clock. Measured, over all turns of one call:

- ttfa: from the text (given whole, where the LLM's would come) to its first packet at the provider, less the engine's own time from that text to its first
  PCM (`ChunkReport.ttfa_s`). `ttfa_total`: without taking the engine's away
- bargein_clear: from the moment at which the voice activity detection says that the caller speaks, to the provider's ``clear``;
  `caller_clear`: from the caller's first packet, so with the detection; `caller_silence`: to the last packet the caller heard
- max_gap: the longest pause in playing while the same speech goes on
- context_error: seconds that the voice's session was told to have been heard of the interrupted speech, against those that the
  line played of it (packets of 20 ms, the one begun counted); `context_codes_error`: the codes kept of it, whole frames of
  40 ms, against the sound that the line played of what the engine made for them (silence put between chunks is nobody's codes).
  A chunk that was cut before its first word was half said is forgotten whole: `unsaid` of them, `unsaid_ms_max` heard at most
- --words: word error at 8 kHz against that at 24 kHz, by pocketsphinx. The embedded voice babbles, so that the line's words are
  compared with those that the same recogniser finds in the 24 kHz sound; with --speech (recordings with their text beside them,
  NAME.wav and NAME.txt) both are compared with the text, and so is
  the recording at 8 kHz as it is, without the line's band, level and mu-law.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import wave
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "agents")]

# ruff: noqa: E402 - the agents' folder is no package
import numpy as np
import soxr
import uvicorn
from loguru import logger
from numpy.typing import NDArray
from pipecat.frames.frames import TTSSpeakFrame
from pipecat.processors.aggregators.llm_context import LLMContext

from agents import phone_bot, phone_webhooks
from higgs_voice import ChunkReport, SessionSettings, Synthesizer, Voice, VoiceSession, Window, create_backend
from higgs_voice.adapters.telephony import PhoneSound
from higgs_voice.audio import FRAME_RATE
from higgs_voice.bench.common import SENTENCES, Place
from higgs_voice.config import Sampling
from higgs_voice.conversation.speech import ChunkRecord
from tests.e2e.phone_line import CLIP, TICK_S, Line, from_ulaw, gaps_s, load, to_ulaw

LONG = " ".join(SENTENCES[:6])


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p95, in milliseconds; of nothing, nothing."""
    if not values:
        return float("nan"), float("nan")
    ordered = sorted(values)
    return statistics.median(ordered) * 1e3, ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] * 1e3


async def serve(engine: Synthesizer) -> tuple[Any, uvicorn.Server, asyncio.Task[None], str]:
    options = phone_bot.Options(unsigned=True, stt="none", secret="s", temperature=0.3, window=1)

    def nothing(_: LLMContext) -> str:
        return ""

    bot = phone_bot.PhoneBot(engine, options, answer=nothing)
    server = uvicorn.Server(uvicorn.Config(phone_bot.create_app(bot), port=0, log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event for it
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    return bot, server, task, f"ws://127.0.0.1:{port}"


class Caller:
    """The line's process: what it reports is read as it happens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.changed = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            at, kind, detail = json.loads(line)
            self.events.append((at, kind, detail))
            self.changed.set()

    async def tell(self, **message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def until(self, kind: str, since: float, limit: float = 30.0) -> tuple[float, dict[str, Any]]:
        async with asyncio.timeout(limit):
            while True:
                for at, name, detail in self.events:
                    if name == kind and at >= since:
                        return at, detail
                self.changed.clear()
                await self.changed.wait()


async def turns(model: str, provider: str, count: int) -> dict[str, Any]:
    engine = create_backend(model)
    bot, server, task, base = await serve(engine)
    lives: list[Any] = []
    noticed: list[float] = []

    def on_call(live: Any) -> None:
        user = live.talkers.user()
        interrupt = user.broadcast_interruption

        async def broadcast(*given: Any, **more: Any) -> Any:
            noticed.append(time.monotonic())
            return await interrupt(*given, **more)

        user.broadcast_interruption = broadcast
        lives.append(live)

    bot.on_call.append(on_call)
    url = f"{base}/call/{provider}/{phone_webhooks.stream_pass('s', provider)}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--line",
        url,
        "--provider",
        provider,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    caller = Caller(process)
    try:
        result = await _turns(bot, caller, lives, noticed, count)
        await caller.tell(leave=True)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        server.should_exit = True
        await task
        await engine.aclose()
    return {"turns": count, "provider": provider, "model": model, **result}


async def _turns(bot: Any, caller: Caller, lives: list[Any], noticed: list[float], count: int) -> dict[str, Any]:
    await caller.until("tick", 0.0)
    while not lives:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    live = lives[0]
    reports: list[ChunkReport] = []

    @live.tts.event_handler("on_chunk")
    async def on_chunk(_: Any, report: ChunkReport) -> None:  # pyright: ignore[reportUnusedFunction]
        reports.append(report)

    told: dict[str, float] = {}
    chunks: list[ChunkRecord] = []
    await asyncio.sleep(1.0)
    session = live.tts.session
    settle = session.settle

    def settled(speech_id: str, heard_s: float, **more: Any) -> None:
        told[speech_id] = heard_s
        speech = session._speeches.get(speech_id)
        chunks[:] = speech.records if speech is not None else []
        settle(speech_id, heard_s, **more)

    session.settle = settled
    out: dict[str, list[float]] = {
        name: [] for name in ("added", "total", "clear", "all", "silence", "error", "codes", "unsaid")
    }
    gaps: list[float] = []
    silent = 0
    for number in range(count):
        interrupted = number % 2 == 1
        text = LONG if interrupted else SENTENCES[number % len(SENTENCES)]
        reports.clear()
        told.clear()
        played = (await ask(caller))["played_s"]
        began = time.monotonic()
        await live.tts.queue_frame(TTSSpeakFrame(text))
        try:
            first, _ = await caller.until("media", began, 15.0)
        except TimeoutError:
            silent += 1
            continue
        while not reports and not interrupted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if interrupted:
            await asyncio.sleep(1.2 + 0.37 * (number % 5))
            since = time.monotonic()
            await caller.tell(say=True)
            spoke, _ = await caller.until("speaking", since)
            cleared, detail = await caller.until("clear", since, 10.0)
            out["clear"].append(cleared - next(at for at in noticed if at >= since))
            out["all"].append(cleared - spoke)
            await caller.until("spoken", since)
            await asyncio.sleep(0.8)
            state = await ask(caller)
            out["silence"].append(max(state["last_played"] - spoke, 0.0))
            heard = detail["played_s"] - played
            out["error"].append(abs(next(iter(told.values())) - heard))
            kept, unsaid = codes_kept(chunks, heard)
            out["codes"].append(abs(kept))
            out["unsaid"] += [unsaid] if unsaid else []
        else:
            await caller.until("quiet", began + 0.5, 40.0)
        if reports:
            out["total"].append(first - began)
            out["added"].append(first - began - reports[0].ttfa_s)
        gaps += (await ask(caller))["gaps"]
        await asyncio.sleep(0.3)
    result: dict[str, Any] = {"silent_turns": silent}
    for name, key in (
        ("ttfa", "added"),
        ("ttfa_total", "total"),
        ("bargein_clear", "clear"),
        ("caller_clear", "all"),
        ("caller_silence", "silence"),
        ("context_error", "error"),
        ("context_codes_error", "codes"),
    ):
        result[f"{name}_ms_p50"], result[f"{name}_ms_p95"] = percentiles(out[key])
    result["unsaid"] = len(out["unsaid"])
    result["unsaid_ms_max"] = max(out["unsaid"], default=0.0) * 1e3
    result["max_gap_ms"] = max(gaps, default=0.0) * 1e3
    result["gaps"] = len(gaps)
    return result


def codes_kept(chunks: list[ChunkRecord], heard_s: float) -> tuple[float, float]:
    """Seconds of codes that the context has too many (negative: too few) after `heard_s` of a speech, and seconds heard of a
    chunk that was cut before its first word: that one is forgotten, and is not counted in the first figure."""
    error = unsaid = 0.0
    for chunk in chunks:
        whole = chunk.exchange()
        if whole is None or heard_s <= chunk.start_s:
            continue
        length = whole.frames / FRAME_RATE
        played = length if heard_s >= chunk.end_s else min(chunk.places.made_s(heard_s - chunk.start_s), length)
        if chunk.entry.exchange is None:
            unsaid += played
        else:
            error += chunk.entry.exchange.frames / FRAME_RATE - played
    return error, unsaid


async def ask(caller: Caller) -> dict[str, Any]:
    since = time.monotonic()
    await caller.tell(state=True)
    _, detail = await caller.until("state", since)
    return detail


async def line_process(url: str, provider: str) -> None:
    """The provider's side: events out, commands in."""
    line = Line(url, provider)
    clip = load(CLIP)
    await line.dial()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    told = since = 0
    quiet = True

    async def report() -> None:
        nonlocal told, quiet
        while True:
            for event in line.events[told:]:
                print(json.dumps([event.at, event.kind, event.detail]), flush=True)
            told = len(line.events)
            if told < 2 and line.heard:
                line.note("tick")
            silent = not any(tick.waiting for tick in line.heard[-25:])
            if silent and not quiet:
                line.note("quiet")
            quiet = silent
            await asyncio.sleep(0.01)

    job = asyncio.create_task(report())
    while text := await reader.readline():
        message = json.loads(text)
        if message.get("say"):
            line.say(clip)
        elif message.get("state"):
            last = max((tick.at + TICK_S for tick in line.heard[since:] if tick.waiting), default=0.0)
            line.note("state", played_s=line.played_s, last_played=last, gaps=gaps_s(line.heard[since:]))
            since = len(line.heard)
        elif message.get("leave"):
            break
    await line.hang_up()
    job.cancel()


# Words


def recognise(sound: NDArray[np.int16], rate: int) -> list[str]:
    from pocketsphinx import Decoder

    decoder: Any = Decoder(samprate=16000, loglevel="FATAL")
    wide = soxr.resample(sound.astype(np.float32) / 32768.0, rate, 16000, quality="VHQ")
    decoder.start_utt()
    decoder.process_raw((np.clip(wide, -1, 1) * 32767).astype("<i2").tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return str(found.hypstr).split() if found is not None else []


def word_errors(heard: list[str], wanted: list[str]) -> int:
    """Insertions, deletions and substitutions that make `wanted` of `heard`."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def over_the_line(sound: NDArray[np.int16]) -> NDArray[np.int16]:
    """24 kHz to what a caller hears, 8 kHz through mu-law; pieces of 80 ms, as an engine makes them."""
    phone = PhoneSound()
    data = sound.astype("<i2").tobytes()
    pcm = b"".join(phone.feed(data[at : at + 3840]) for at in range(0, len(data), 3840)) + phone.flush()
    return from_ulaw(to_ulaw(np.frombuffer(pcm, dtype="<i2").astype(np.int16)))


async def words(model: str, recordings: list[str]) -> dict[str, Any]:
    """Word errors with the voice's own sound, and with recordings of which the text is known."""
    engine = create_backend(model)
    await engine.start()
    wrong = total = 0
    for number, text in enumerate(SENTENCES):
        settings = SessionSettings(sampling=Sampling(temperature=0.3, seed=number), window=Window.last_n(1))
        async with VoiceSession(engine, voice=Voice.create(speakers="feminine"), settings=settings) as session:
            sound = np.frombuffer(await session.speak(text).collect(), dtype="<i2").astype(np.int16)
        wide = recognise(sound, 24000)
        wrong += word_errors(recognise(over_the_line(sound), 8000), wide)
        total += len(wide)
    await engine.aclose()
    result: dict[str, Any] = {"voice_words_24k": total, "voice_words_changed_by_line": wrong}
    errors = {"24k": 0, "plain": 0, "8k": 0}
    known = 0
    for name in recordings:
        with wave.open(name, "rb") as file:
            rate = file.getframerate()
            sound = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.int16)
        wide = (
            (soxr.resample(sound.astype(np.float32), rate, 24000, quality="VHQ")).clip(-32768, 32767).astype(np.int16)
        )
        wanted = Path(name).with_suffix(".txt").read_text().lower().split()
        known += len(wanted)
        errors["24k"] += word_errors(recognise(wide, 24000), wanted)
        plain = soxr.resample(wide.astype(np.float32), 24000, 8000, quality="VHQ").clip(-32768, 32767).astype(np.int16)
        errors["plain"] += word_errors(recognise(plain, 8000), wanted)
        errors["8k"] += word_errors(recognise(over_the_line(wide), 8000), wanted)
    if known:
        result |= {"speech_words": known, "wer_24k": errors["24k"] / known, "wer_plain_8k": errors["plain"] / known}
        result["wer_8k"] = errors["8k"] / known
        result["wer_ratio"] = errors["8k"] / max(errors["24k"], 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="What a telephone line adds, loses and remembers.")
    parser.add_argument("--turns", type=int, default=20, help="every second one is interrupted")
    parser.add_argument("--provider", default="twilio", choices=("twilio", "telnyx", "plivo", "exotel"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--words", action="store_true", help="word error over the line instead")
    parser.add_argument("--speech", nargs="*", default=[], metavar="WAV", help="recordings, with NAME.txt beside each")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    parser.add_argument("--line", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logger.remove()
    if given.line:
        asyncio.run(line_process(given.line, given.provider))
        return 0
    if given.words:
        result = asyncio.run(words(given.model, given.speech))
    else:
        result = asyncio.run(turns(given.model, given.provider, given.turns))
    if not given.json:
        for line in Place.here().lines():
            print(line)
        for key, value in result.items():
            print(f"{key:28} {value}")
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
