"""What a LiveKit room adds to the engine: time to first audio, barge-in to silence, gaps inside speech.

    python benchmarks/room.py [--turns 20] [--model nano] [--json]

A LiveKit server, `higgs-voice serve` and the worker of agents/livekit_agent.py run as processes of their own on loopback; a
caller with the LiveKit SDK types and listens. Every turn's text is said four times, one after the other, so that a machine
that is slower for a while is slower for all four; each time by a session that hears as much of its past as the others do:

- engine: from the text to the first PCM of an engine in this process
- server: the same of the engine behind `higgs-voice serve`, over its websocket
- plugin: from the text to the first frame of the LiveKit TTS (`higgs.TTS`) on that server, without a room
- room: from the caller's typed text to the first 10 ms it hears that are louder than -40 dB of full scale

and besides, in the room:

- barge-in: from the typed interruption to the first of 400 ms in which nothing is heard
- gap: the longest stretch without sound inside a turn, beyond the longest that the engine's own sound of that turn has after
  the same way through Opus alone, without a room, wherever the caller's 10 ms begin: Opus dims the edges of a pause

The shares are medians of the turns' differences: `server_added_ttfa_ms_p50` is server less engine, `plugin_added_ttfa_ms_p50`
plugin less server, `room_added_ttfa_ms_p50` room less plugin: the typed message's way, the agent's turn taking, the silence
before the voice's first loud sound, Opus, the network and the caller's jitter buffer. `added_ttfa_ms_p50` is all of them,
room less engine; `server_and_plugin_added_ttfa_ms_p50` plugin less engine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the server's processes have it; read when torch is loaded

import av
import numpy as np
import soxr
from livekit.agents import APIError
from livekit.plugins import higgs
from numpy.typing import NDArray

from higgs_voice import PcmChunk, VoiceSession, create_backend
from higgs_voice.bench.common import SENTENCES, Place
from higgs_voice.errors import NoAudioError
from tests.e2e.livekit_stage import AUDIBLE, Caller, Stage

LONG = " ".join(SENTENCES[:8])
GREETING = "Hello, and welcome. What can I do for you?"
"""What the worker's agent says first: the others say it too, so that all four hear the same past and draw the same sound."""
SETTINGS = higgs.SessionSettings(sampling=higgs.Sampling(temperature=0.3, seed=7), window=higgs.Window.last_n(1))
DRAWN = {"HIGGS_AGENT_WINDOW": "1", "HIGGS_AGENT_TEMPERATURE": "0.3", "HIGGS_AGENT_SEED": "7"}
"""The same for the worker."""


@dataclass
class Measured:
    """Seconds. One entry a turn; NaN where the model gave no sound."""

    engine: list[float] = field(default_factory=list[float])
    server: list[float] = field(default_factory=list[float])
    plugin: list[float] = field(default_factory=list[float])
    room: list[float] = field(default_factory=list[float])
    factors: list[float] = field(default_factory=list[float])
    """Time to generate over time of audio, in this process."""
    quiet: list[float] = field(default_factory=list[float])
    """The longest silence inside the engine's own sound of each turn."""
    gaps: list[float] = field(default_factory=list[float])
    """The longest silence inside each turn in the room."""
    late: float = 0.0
    """The longest that the listener itself was kept from the processor."""
    same: bool = True
    """Whether the server's sound was the engine's, sample by sample."""
    silences: list[float] = field(default_factory=list[float])


def percentile(values: list[float], share: float) -> float:
    """In milliseconds, by the nearest rank; NaN are left out."""
    ordered = sorted(value for value in values if value == value)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else float("nan")


def added(values: list[float], base: list[float]) -> float:
    """Median of the turns' differences, in milliseconds."""
    pairs = [one - other for one, other in zip(values, base, strict=True) if one == one and other == other]
    return statistics.median(pairs) * 1e3 if pairs else float("nan")


async def by_session(session: VoiceSession, text: str) -> tuple[float, float, NDArray[np.int16]]:
    """TTFA and RTF of a turn that is then heard in full, and its sound."""
    began = time.perf_counter()
    speech = session.speak(text)
    first = float("nan")
    sound = bytearray()
    with suppress(NoAudioError):
        async for item in speech:
            if isinstance(item, PcmChunk):
                if not sound:
                    first = time.perf_counter() - began
                sound += item.pcm
    took = time.perf_counter() - began
    session.settle(speech.id, float("inf"))
    await asyncio.sleep(0.2)  # what is prefilled between turns is ready, as it is in a call
    return first, took / speech.audio_s if sound else float("nan"), np.frombuffer(bytes(sound), dtype="<i2")


async def by_plugin(tts: higgs.TTS, text: str) -> float:
    """From pushing a turn's text to the first frame of the plugin's stream."""
    first = float("nan")
    async with tts.stream() as stream:
        began = time.perf_counter()
        stream.push_text(text)
        stream.end_input()
        with suppress(APIError):
            async for _ in stream:
                if first != first:
                    first = time.perf_counter() - began
    for said in list(tts.conversation().said.values()):
        said.settle(float("inf"))
    await asyncio.sleep(0.2)
    return first


async def by_caller(caller: Caller, text: str, measured: Measured) -> float:
    """From the typed text to the first sound in the room."""
    since = len(caller.heard)
    sent = await caller.send(f"say: {text}")
    try:
        start = await caller.until_audible(since)
    except AssertionError:
        measured.gaps.append(0.0)
        return float("nan")
    stop = await caller.until_quiet(start, 1.0)
    measured.gaps.append(caller.longest_gap_s(start, stop))
    measured.late = max(measured.late, caller.worst_gap_s(start, stop) - 0.02)
    return caller.heard[start][0] - sent


def through_opus(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """24 kHz to 24 kHz by way of a WebRTC track's coding: 48 kHz, 20 ms, 32 kbit/s."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = 48000, "mono", "s16", 32000
    encoder.options = {"application": "voip", "frame_duration": "20"}
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48000, "mono"
    wide = soxr.resample(samples, 24000, 48000)
    wide = np.pad(wide, (0, -len(wide) % 960))
    packets: list[Any] = []
    for start in range(0, len(wide), 960):
        frame = av.AudioFrame.from_ndarray(wide[None, start : start + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48000, start
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    heard = [frame.to_ndarray().reshape(-1) for packet in packets for frame in decoder.decode(packet)]
    sound = np.concatenate(heard)
    if sound.dtype != np.int16:
        sound = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
    return soxr.resample(sound, 48000, 24000)


def longest_quiet_s(samples: NDArray[np.int16]) -> float:
    """The longest silence between two sounds, wherever the first 10 ms begin."""
    return max(_longest_quiet_s(samples[start:]) for start in range(0, 240, 60))


def _longest_quiet_s(samples: NDArray[np.int16]) -> float:
    count = len(samples) // 240
    levels = np.sqrt(np.mean((samples[: count * 240].reshape(count, 240) / 32768.0) ** 2, axis=1))
    loud = np.flatnonzero(levels >= AUDIBLE)
    return 0.0 if len(loud) < 2 else float(max(np.diff(loud) - 1)) / 100


async def interrupted(caller: Caller) -> float:
    """From a typed interruption to silence."""
    since = len(caller.heard)
    await caller.send(f"say: {LONG}")
    await caller.until_audible(since)
    await asyncio.sleep(2.0)
    said = len(caller.heard)
    sent = await caller.send("say: …")  # interrupts, and then has nothing to say
    stop = await caller.until_quiet(said)
    # a pause of the voice is quiet before the interruption can have come through
    return max(0.0, caller.heard[stop][0] - sent)


async def measure(stage: Stage, turns: list[str], interruptions: int) -> dict[str, Any]:
    result = Measured()
    local, remote = create_backend(stage.model), create_backend(f"ws://127.0.0.1:{stage.port}")
    await local.start()
    await remote.start()
    tts = higgs.TTS(engine=remote, settings=SETTINGS)
    try:
        async with (
            VoiceSession(local, settings=SETTINGS) as here,
            VoiceSession(remote, settings=SETTINGS) as there,
            tts,
            Caller(stage, "benchmark") as caller,
        ):
            await caller.agent()
            await caller.until_quiet(await caller.until_audible(0), 1.0)
            await by_session(here, GREETING)
            await by_session(there, GREETING)
            await by_plugin(tts, GREETING)
            for number, text in enumerate([turns[-1], *turns]):
                measured = result if number else Measured()  # the first one warms up
                engine, factor, sound = await by_session(here, text)
                server, _, other = await by_session(there, text)
                result.same = result.same and np.array_equal(sound, other)
                measured.engine.append(engine)
                measured.server.append(server)
                measured.factors.append(factor)
                measured.quiet.append(longest_quiet_s(through_opus(sound)) if len(sound) else 0.0)
                measured.plugin.append(await by_plugin(tts, text))
                measured.room.append(await by_caller(caller, text, measured))
            for _ in range(interruptions):
                result.silences.append(await interrupted(caller))
    finally:
        await remote.aclose()
        await local.aclose()
    return figures(result, stage.model)


def figures(measured: Measured, model: str) -> dict[str, Any]:
    result: dict[str, Any] = {"bench": "room", "model": model, "turns": len(measured.room)}
    ways = {name: getattr(measured, name) for name in ("engine", "server", "plugin", "room")}
    for name, values in ways.items():
        result[f"{name}_ttfa_ms_p50"], result[f"{name}_ttfa_ms_p95"] = percentile(values, 0.5), percentile(values, 0.95)
    result["added_ttfa_ms_p50"] = added(measured.room, measured.engine)
    result["server_added_ttfa_ms_p50"] = added(measured.server, measured.engine)
    result["plugin_added_ttfa_ms_p50"] = added(measured.plugin, measured.server)
    result["server_and_plugin_added_ttfa_ms_p50"] = added(measured.plugin, measured.engine)
    result["room_added_ttfa_ms_p50"] = added(measured.room, measured.plugin)
    result["bargein_silence_ms_p50"] = percentile(measured.silences, 0.5)
    result["bargein_silence_ms_p95"] = percentile(measured.silences, 0.95)
    gaps = [max(0.0, heard - own) for heard, own in zip(measured.gaps, measured.quiet, strict=True)]
    result["max_gap_ms"], result["gap_ms_p50"] = max(gaps) * 1e3, percentile(gaps, 0.5)
    result["engine_quiet_ms"] = max(measured.quiet) * 1e3
    result["same_sound"] = measured.same
    result["listener_late_ms"] = measured.late * 1e3
    result["silent_turns"] = sum(value != value for values in ways.values() for value in values)
    result["rtf_p50"] = statistics.median(measured.factors)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a LiveKit room adds to the engine.")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--interruptions", type=int, default=10)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)  # so that the processes are ended
    turns = [SENTENCES[number % len(SENTENCES)] for number in range(given.turns)]
    with (
        tempfile.TemporaryDirectory() as folder,
        # The script gives its text at once: how long an LLM takes is not what is measured.
        Stage(Path(folder), model=given.model, spare=False, HIGGS_AGENT_WORD_S="0", **DRAWN).running() as stage,
    ):
        result = asyncio.run(measure(stage, turns, given.interruptions))
    if not given.json:
        for line in Place.here().lines():
            print(line)
        for key, value in result.items():
            print(f"{key:36} {value}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
