"""A LiveKit server, an engine server and a worker, each a process of its own, and callers who measure what they hear."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import difflib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr
from livekit import api, rtc
from numpy.typing import NDArray
from pocketsphinx import Decoder, get_model_path

ROOT = Path(__file__).resolve().parent.parent.parent
AUDIBLE = 0.01
"""RMS of 10 ms, of full scale, above which something is heard."""


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


livekit_server = _load("livekit_server")


class Stage:
    """The processes. Everything listens on loopback."""

    def __init__(self, folder: Path, *, model: str = "fake", spare: bool = True, **environment: str) -> None:
        self.folder = folder
        self.model = model
        self.spare = spare
        """Whether a second engine server stands by."""
        self.environment = environment
        """The worker's and the engines', beside this process's own."""
        self.port, self.second_port = livekit_server.free_port(), livekit_server.free_port()
        self.server: Any = None
        self.engine: subprocess.Popen[bytes] | None = None
        self.second: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None
        self._workers = 0

    @property
    def url(self) -> str:
        """The LiveKit server's."""
        return self.server.url

    @property
    def engine_url(self) -> str:
        """The second takes over when the first is lost."""
        first = f"ws://127.0.0.1:{self.port}"
        return first if not self.spare else f"{first},ws://127.0.0.1:{self.second_port}"

    @contextlib.contextmanager
    def running(self) -> Generator[Stage]:
        with livekit_server.running(log=self.folder / "livekit.log") as self.server:
            try:
                self.start_engine()
                if self.spare:
                    self.second = self._start_engine(self.second_port)
                self.start_worker()
                yield self
            finally:
                for process in (self.worker, self.engine, self.second):
                    if process is not None:
                        kill(process)

    def start_engine(self) -> None:
        self.engine = self._start_engine(self.port)

    def _start_engine(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "higgs_voice.cli", "serve", "--model", self.model, "--port", str(port)]
        command.append("--admit-beyond-capacity")  # a machine shared with other work may be slower than real time
        process = self._spawn("engine", command)
        wait(lambda: self._get("/readyz", port) is not None, 90, process)
        return process

    def start_worker(self) -> None:
        self._workers += 1
        name = f"worker{self._workers}"
        self.worker = self._spawn(name, [sys.executable, "agents/livekit_agent.py", "start"])
        log = self.folder / f"{name}.log"
        wait(lambda: b"registered worker" in log.read_bytes(), 90, self.worker)

    def load(self) -> dict[str, float]:
        return self._get("/v1/load") or {}

    def token(self, room: str, name: str, *, sip: bool = False) -> str:
        grants = api.VideoGrants(room_join=True, room=room)
        token = api.AccessToken(self.server.api_key, self.server.api_secret)
        if sip:
            token = token.with_kind("sip").with_attributes({"sip.callID": "SCL_1", "sip.phoneNumber": "+15550100"})
        return token.with_identity(name).with_ttl(timedelta(minutes=30)).with_grants(grants).to_jwt()

    async def close_room(self, room: str) -> None:
        url = self.server.url.replace("ws://", "http://")
        async with api.LiveKitAPI(url, self.server.api_key, self.server.api_secret) as admin:
            await admin.room.delete_room(api.DeleteRoomRequest(room=room))

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        assert self.server is not None
        environment = {
            **os.environ,
            **self.environment,
            "LIVEKIT_URL": self.server.url,
            "LIVEKIT_API_KEY": self.server.api_key,
            "LIVEKIT_API_SECRET": self.server.api_secret,
            "HIGGS_VOICE_MODEL": self.engine_url,
            "OMP_NUM_THREADS": "1",
        }
        log = (self.folder / f"{name}.log").open("ab")
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def _get(self, path: str, port: int | None = None) -> dict[str, Any] | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{port or self.port}{path}", timeout=2) as answer:
                return json.load(answer)
        except OSError:
            return None


def kill(process: subprocess.Popen[bytes]) -> None:
    """The process and its children, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(condition: Callable[[], bool], timeout_s: float, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"{process.args} ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} was not ready within {timeout_s:.0f} s"
        time.sleep(0.1)


class Venue(Protocol):
    """Where a caller may join."""

    @property
    def url(self) -> str: ...

    def token(self, room: str, name: str) -> str: ...


@dataclass
class Caller:
    """A participant who listens. Times are `time.perf_counter`'s."""

    stage: Venue
    room_name: str
    name: str = "caller"
    sip: bool = False
    """On the telephone."""
    room: rtc.Room = field(default_factory=rtc.Room)
    heard: list[tuple[float, float]] = field(default_factory=list)
    """Arrival time and RMS of every 10 ms."""
    sound: list[NDArray[np.int16]] = field(default_factory=list)
    """The same 10 ms as samples, at 24 kHz."""
    _microphone: rtc.AudioSource | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _agent: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def __aenter__(self) -> Caller:
        self.room.on("track_subscribed", self._subscribed)
        await self.room.connect(
            self.stage.url, self.stage.token(self.room_name, self.name, **({"sip": True} if self.sip else {}))
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.room.disconnect()

    async def agent(self, timeout_s: float = 60.0) -> str:
        """The agent's identity, once it can be heard."""
        return await asyncio.wait_for(asyncio.shield(self._agent), timeout_s)

    async def send(self, text: str) -> float:
        """Type a message; when it left."""
        now = time.perf_counter()
        await self.room.local_participant.send_text(text, topic="lk.chat")
        return now

    async def say(self, samples: NDArray[np.int16]) -> tuple[float, asyncio.Task[None]]:
        """Speak: samples at 24 kHz, as from a microphone. When their first sound left, and what ends when all of it has."""
        if self._microphone is None:
            self._microphone = rtc.AudioSource(24000, 1, queue_size_ms=40)
            track = rtc.LocalAudioTrack.create_audio_track("microphone", self._microphone)
            options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
            publication = await self.room.local_participant.publish_track(track, options)
            await publication.wait_for_subscription()
        source = self._microphone
        loud = int(np.flatnonzero(np.abs(samples) > 32768 * AUDIBLE)[0])
        samples = np.concatenate([np.zeros(12000, np.int16), samples[loud:], np.zeros(12000, np.int16)])
        began: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def speak() -> None:
            for start in range(0, len(samples) - 239, 240):
                await source.capture_frame(rtc.AudioFrame(samples[start : start + 240].tobytes(), 24000, 1, 240))
                if start == 12000:
                    began.set_result(time.perf_counter())

        task = asyncio.get_running_loop().create_task(speak())
        self._tasks.add(task)
        return await began, task

    async def memory(self) -> dict[str, Any]:
        """What the voice remembers."""
        return json.loads(await self._ask(""))

    async def codes(self, exchange: int) -> NDArray[np.int16]:
        """The codes [8, frames] of an exchange that the voice remembers."""
        data = base64.b64decode(await self._ask(str(exchange)))
        return np.frombuffer(data, dtype="<i2").reshape(8, -1)

    async def _ask(self, payload: str) -> str:
        return await self.room.local_participant.perform_rpc(
            destination_identity=await self.agent(), method="higgs.memory", payload=payload
        )

    async def until_audible(self, since: int, timeout_s: float = 20.0) -> int:
        """Index of the first 10 ms from `since` on in which something is heard."""
        return await self._until(since, lambda index: self.heard[index][1] >= AUDIBLE, timeout_s)

    async def until_quiet(self, since: int, quiet_s: float = 0.4, timeout_s: float = 60.0) -> int:
        """Index of the first 10 ms from `since` on after which nothing is heard for `quiet_s`."""
        count = round(quiet_s * 100)

        def quiet(index: int) -> bool:
            window = self.heard[index : index + count]
            return len(window) == count and all(level < AUDIBLE for _, level in window)

        return await self._until(since, quiet, timeout_s, margin=count)

    def samples(self, start: int, stop: int) -> NDArray[np.int16]:
        return np.concatenate(self.sound[start:stop]) if stop > start else np.zeros(0, np.int16)

    def worst_gap_s(self, start: int, stop: int) -> float:
        """How much a gap may last: 20 ms, and as much as this very process was kept from the processor in that time, where
        one has to do with a machine that is short of it."""
        times = [time for time, _ in self.heard[start:stop]]
        return 0.0201 + max((after - before - 0.01 for before, after in itertools.pairwise(times)), default=0.0)

    def longest_gap_s(self, start: int, stop: int) -> float:
        """The longest silence between two audible stretches."""
        longest = run = 0
        for _, level in self.heard[start:stop]:
            run = run + 1 if level < AUDIBLE else 0
            longest = max(longest, run)
        return longest / 100

    async def _until(self, index: int, found: Callable[[int], bool], timeout_s: float, margin: int = 1) -> int:
        deadline = time.monotonic() + timeout_s
        while True:
            while index + margin <= len(self.heard):
                if found(index):
                    return index
                index += 1
            assert time.monotonic() < deadline, "what the caller waits to hear did not come"
            await asyncio.sleep(0.005)

    def _subscribed(self, track: rtc.Track, _: object, participant: rtc.RemoteParticipant) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            task = asyncio.get_running_loop().create_task(self._listen(track))
            self._tasks.add(task)
            if not self._agent.done():
                self._agent.set_result(participant.identity)

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=24000, num_channels=1, frame_size_ms=10)
        try:
            async for event in stream:
                samples = np.frombuffer(event.frame.data, dtype=np.int16).copy()
                level = float(np.sqrt(np.mean((samples / 32768.0) ** 2)))
                self.heard.append((time.perf_counter(), level))
                self.sound.append(samples)
        finally:
            await stream.aclose()


def pitches(samples: NDArray[np.int16], hop: int = 240, size: int = 480) -> NDArray[np.float64]:
    """The strongest frequency of every 10 ms, in Hz, between 150 and 600."""
    window = np.hanning(size)
    count = max(0, (len(samples) - size) // hop + 1)
    spectra = np.abs(
        np.fft.rfft(np.stack([samples[i * hop : i * hop + size] * window for i in range(count)]), 8192, axis=1)
    )
    low, high = int(150 * 8192 / 24000), int(600 * 8192 / 24000)
    return (np.argmax(spectra[:, low:high], axis=1) + low) * 24000 / 8192


def agreement(heard: NDArray[np.int16], made: NDArray[np.int16]) -> float:
    """Share of what was made that was heard with its pitch, second by second, each where it fits best.

    A jitter buffer stretches and shrinks speech by some milliseconds to keep its own length, so that no one alignment fits all
    of it. Chance is about 0.25. Every fourth 10 ms holds a change of pitch and may show either: 0.85 is all of it.
    """
    ours, theirs = pitches(heard), pitches(made)
    matched = 0.0
    for start in range(0, len(theirs), 100):
        piece = theirs[start : start + 100]
        best = 0
        for place in range(max(0, start - 50), min(len(ours), start + 100)):
            there = ours[place : place + len(piece)]
            best = max(best, int((np.abs(there - piece[: len(there)]) < 15.0).sum()))
        matched += best
    return matched / len(theirs)


def inserted(heard: NDArray[np.int16], made: NDArray[np.int16]) -> list[tuple[float, float]]:
    """Where more than 10 ms was heard that was not made there, in seconds: the place in what was made, and how much.

    A sender that is kept from the processor is late, and the caller's jitter buffer fills in; that comes to tenths of a second
    at a place. Something that is said twice comes to the length of a sentence.
    """
    ours, theirs = pitches(heard), pitches(made)
    found: list[tuple[float, float]] = []
    lag = 0
    for start in range(0, len(theirs) - 49, 50):
        piece = theirs[start : start + 50]
        scores = {
            place: int((np.abs(ours[place : place + 50] - piece) < 15.0).sum())
            for place in range(start, min(len(ours) - 50, start + 1000))
        }
        best = max(scores, key=scores.__getitem__, default=start)
        if scores.get(best, 0) >= 35:
            if best - start - lag > 1:
                found.append((start / 100, (best - start - lag) / 100))
            lag = best - start
    return found


def voiced(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Without the 10 ms in which nothing is heard: pauses, of the voice's own or where an engine was late."""
    count = len(samples) // 240
    pieces = samples[: count * 240].reshape(count, 240)
    return pieces[np.sqrt(np.mean((pieces / 32768.0) ** 2, axis=1)) >= AUDIBLE].ravel()


def spectra(samples: NDArray[np.int16]) -> NDArray[np.float64]:
    """Level in 40 bands from 100 Hz to 7 kHz for every 10 ms, in dB above -60 dB of full scale."""
    window = np.hanning(600)
    count = max(0, (len(samples) - 600) // 240 + 1)
    frames = np.stack([samples[i * 240 : i * 240 + 600] / 32768 * window for i in range(count)])
    power = np.abs(np.fft.rfft(frames, 1024, axis=1)) ** 2
    edges = np.unique(np.geomspace(100, 7000, 41) * 1024 / 24000).astype(int)
    bands = np.stack(
        [power[:, low : max(low + 1, high)].mean(axis=1) for low, high in itertools.pairwise(edges)], axis=1
    )
    return np.maximum(10 * np.log10(bands + 1e-12), -60.0) + 60.0


def likeness(heard: NDArray[np.int16], made: NDArray[np.int16]) -> float:
    """Correlation of the spectra over time, second by second, each where it fits best (see `agreement`); 1 is the same."""
    ours, theirs = spectra(heard), spectra(made)
    fits: list[float] = []
    for start in range(0, max(1, len(theirs) - 50), 100):
        piece = theirs[start : start + 100]
        places = range(max(0, start - 50), max(1, min(len(ours) - len(piece), start + 100)))
        fits.append(max(float(np.corrcoef(ours[at : at + len(piece)].ravel(), piece.ravel())[0, 1]) for at in places))
    return float(np.mean(fits))


def words(samples: NDArray[np.int16]) -> list[str]:
    """What a speech recogniser makes of it."""
    decoder = _listen(samples, Decoder(loglevel="FATAL"))
    found = decoder.hyp()
    return found.hypstr.split() if found is not None else []


def phones(samples: NDArray[np.int16]) -> list[str]:
    """The same without a dictionary: a wrong word does not draw the next one after it."""
    model = get_model_path("en-us/en-us-phone.lm.bin")
    decoder = _listen(samples, Decoder(allphone=model, lm=None, lw=2.0, beam=1e-20, pbeam=1e-20, loglevel="FATAL"))
    return [item.word for item in decoder.seg() if item.word != "SIL" and not item.word.startswith("+")]


def _listen(samples: NDArray[np.int16], decoder: Decoder) -> Decoder:
    decoder.start_utt()
    decoder.process_raw(soxr.resample(samples, 24000, 16000).tobytes(), full_utt=True)
    decoder.end_utt()
    return decoder


def shared(ours: list[str], theirs: list[str]) -> float:
    """Share that two lists have in common, in their order."""
    return difflib.SequenceMatcher(None, ours, theirs, autojunk=False).ratio()
