"""What a LiveKit room adds to the engine: time to first audio, barge-in to silence, gaps inside speech.

    python benchmarks/room.py [--turns 20] [--model nano] [--json]

A LiveKit server, `higgs-voice serve` and the worker of agents/livekit_agent.py run as processes of their own on loopback; a
caller with the LiveKit SDK types and listens. Measured:

- room: from the caller's typed text to the first 10 ms it hears that are louder than -40 dB of full scale
- engine: from the text to the first PCM of the same server, by a `VoiceSession` of this process that says the same turns
- plugin: the same, to the first frame of the LiveKit TTS (`higgs.TTS`), without a room
- barge-in: from the typed interruption to the first of 400 ms in which nothing is heard
- gap: the longest stretch without sound inside a sentence, beyond what the engine's own sound has there

`added_ttfa_ms_p50` is plugin less engine (what the plugin adds); `room_added_ttfa_ms_p50` is room less engine, and holds
the typed message's way, the agent's turn taking, Opus, the network and the caller's jitter buffer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from livekit.agents import APIError
from livekit.plugins import higgs

from higgs_voice import PcmChunk, VoiceSession, create_backend
from higgs_voice.bench.common import SENTENCES, Place
from higgs_voice.conversation.synthesizer import Synthesizer
from higgs_voice.errors import NoAudioError
from tests.e2e.livekit_stage import AUDIBLE, Caller, Stage

LONG = " ".join(SENTENCES[:8])


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p95, in milliseconds."""
    ordered = sorted(values)
    return statistics.median(ordered) * 1e3, ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] * 1e3


async def engine_alone(engine: Synthesizer, turns: list[str]) -> tuple[list[float], list[float], float]:
    """TTFA and RTF of every turn, each a speech of one session and heard in full; and the longest quiet in the sound."""
    waits: list[float] = []
    factors: list[float] = []
    quiet = 0.0
    async with VoiceSession(engine) as session:
        for text in turns:
            began = time.perf_counter()
            speech = session.speak(text)
            first: float | None = None
            sound = bytearray()
            with suppress(NoAudioError):
                async for item in speech:
                    if isinstance(item, PcmChunk):
                        first = first or time.perf_counter()
                        sound += item.pcm
            if first is None:
                continue  # a turn the model has no sound for is counted by the room
            waits.append(first - began)
            factors.append((time.perf_counter() - began) / speech.audio_s)
            quiet = max(quiet, longest_quiet_s(np.frombuffer(bytes(sound), dtype="<i2")))
            session.settle(speech.id, speech.audio_s)
    return waits, factors, quiet


async def plugin_alone(model: str, turns: list[str]) -> list[float]:
    """From pushing a turn's text to the first frame of the plugin's stream."""
    waits: list[float] = []
    async with higgs.TTS(model=model) as tts:
        await tts.conversation().ready()
        for text in turns:
            async with tts.stream() as stream:
                began = time.perf_counter()
                stream.push_text(text)
                stream.end_input()
                with suppress(APIError):
                    async for _ in stream:
                        if began:
                            waits.append(time.perf_counter() - began)
                            began = 0.0
            conversation = tts.conversation()
            for said in list(conversation.said.values()):
                said.settle(float("inf"))
    return waits


def longest_quiet_s(samples: np.ndarray) -> float:
    """The longest silence between two sounds."""
    count = len(samples) // 240
    levels = np.sqrt(np.mean((samples[: count * 240].reshape(count, 240) / 32768.0) ** 2, axis=1))
    loud = np.flatnonzero(levels >= AUDIBLE)
    return 0.0 if len(loud) < 2 else float(max(np.diff(loud) - 1)) / 100


async def in_room(stage: Stage, turns: list[str], interruptions: int) -> tuple[list[float], list[float], float, int]:
    """TTFA of every turn, barge-in to silence, the longest silence inside speech, and turns without any sound."""
    silent = 0
    waits: list[float] = []
    silences: list[float] = []
    gap = 0.0
    async with Caller(stage, "benchmark") as caller:
        await caller.agent()
        await caller.until_quiet(await caller.until_audible(0), 1.0)
        for text in turns:
            since = len(caller.heard)
            sent = await caller.send(f"say: {text}")
            try:
                start = await caller.until_audible(since)
            except AssertionError:
                silent += 1
                continue
            waits.append(caller.heard[start][0] - sent)
            stop = await caller.until_quiet(start, 1.0)
            gap = max(gap, caller.longest_gap_s(start, stop))
        for _ in range(interruptions):
            since = len(caller.heard)
            await caller.send(f"say: {LONG}")
            await caller.until_audible(since)
            await asyncio.sleep(2.0)
            said = len(caller.heard)
            sent = await caller.send("say: …")
            stop = await caller.until_quiet(said)
            # a pause of the voice is quiet before the interruption can have come through
            silences.append(max(0.0, caller.heard[stop][0] - sent))
    return waits, silences, gap, silent


async def measure(stage: Stage, turns: list[str], interruptions: int) -> dict[str, Any]:
    address = f"ws://127.0.0.1:{stage.port}"
    engine = create_backend(address)
    await engine.start()
    try:
        await engine_alone(engine, turns[:2])  # warms up
        alone, factors, quiet = await engine_alone(engine, turns)
    finally:
        await engine.aclose()
    plugin = await plugin_alone(address, turns)
    room, silences, gap, silent = await in_room(stage, turns, interruptions)
    result: dict[str, Any] = {"turns": len(turns), "model": stage.model}
    for name, values in (("engine", alone), ("plugin", plugin), ("room", room)):
        result[f"{name}_ttfa_ms_p50"], result[f"{name}_ttfa_ms_p95"] = percentiles(values)
    result["added_ttfa_ms_p50"] = result["plugin_ttfa_ms_p50"] - result["engine_ttfa_ms_p50"]
    result["room_added_ttfa_ms_p50"] = result["room_ttfa_ms_p50"] - result["engine_ttfa_ms_p50"]
    result["bargein_silence_ms_p50"], result["bargein_silence_ms_p95"] = percentiles(silences)
    result["max_gap_ms"] = max(0.0, gap - quiet) * 1e3
    result["silent_turns"] = silent
    result["rtf_p50"] = statistics.median(factors)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="What a LiveKit room adds to the engine.")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--interruptions", type=int, default=10)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    given = parser.parse_args()
    turns = [SENTENCES[number % len(SENTENCES)] for number in range(given.turns)]
    with (
        tempfile.TemporaryDirectory() as folder,
        # The script gives its text at once: how long an LLM takes is not what is measured.
        Stage(Path(folder), model=given.model, spare=False, HIGGS_AGENT_WORD_S="0").running() as stage,
    ):
        result = asyncio.run(measure(stage, turns, given.interruptions))
    if not given.json:
        for line in Place.here().lines():
            print(line)
        for key, value in result.items():
            print(f"{key:28} {value}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
