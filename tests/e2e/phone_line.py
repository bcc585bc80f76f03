"""A telephone provider's side of a call, for tests and measurements: it dials a bot's websocket, plays what comes, and speaks.

Written from the providers' public documentation and apart from the project's code; it imports none of it. Twilio (Media
Streams), Telnyx (Media Streaming over WebSocket), Plivo (Audio Streaming) and Exotel (Voicebot applet):

- messages are JSON texts; sound is base64, mu-law at 8 kHz (Exotel: 16-bit PCM at 8 kHz, little-endian)
- the caller's sound is sent as it comes, 20 ms a message (Exotel: 100 ms), also while the caller is silent
- what the bot sends is buffered and played in order, in real time, a packet of 20 ms a tick
- a mark (Plivo: checkpoint) comes back when all that was sent before it has been played, at once if nothing waits
- clear empties the buffer and returns the marks that waited (Plivo: answers clearedAudio, and drops the checkpoints)

    python tests/e2e/phone_line.py ws://127.0.0.1:8080/call/... --calls 8 --steps hear:2 say cleared hear:1 hangup

plays a script in as many calls at once, in a process of its own, and prints what happened as JSON, times by CLOCK_MONOTONIC.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
import wave
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import websockets
from numpy.typing import NDArray

RATE = 8000
TICK_S = 0.02
TICK = int(RATE * TICK_S)
AUDIBLE = 0.01
"""RMS of full scale from which a packet is heard (-40 dB)."""


# G.711 mu-law, by its definition (14 bits, eight segments)


def to_ulaw(pcm: NDArray[np.int16]) -> bytes:
    value = pcm.astype(np.int32)
    sign = np.where(value < 0, 0x80, 0)
    size = np.minimum(np.abs(value), 32635) + 132
    segment = np.floor(np.log2(size)).astype(np.int32) - 7
    step = (size >> (segment + 3)) & 0x0F
    return (~(sign | (segment << 4) | step) & 0xFF).astype(np.uint8).tobytes()


def from_ulaw(data: bytes) -> NDArray[np.int16]:
    code = ~np.frombuffer(data, dtype=np.uint8).astype(np.int32) & 0xFF
    size = ((((code & 0x0F) << 3) + 132) << ((code >> 4) & 0x07)) - 132
    return np.where(code & 0x80, -size, size).astype(np.int16)


SILENCE = to_ulaw(np.zeros(TICK, dtype=np.int16))


@dataclass(frozen=True)
class Conditions:
    """What the line does to a call."""

    latency_s: float = 0.0
    """One way, between bot and provider."""
    jitter_s: float = 0.0
    """A message is late by up to this, each way; order is kept, as TCP keeps it."""
    loss: float = 0.0
    """Share of 20 ms packets that are lost between provider and caller, each way."""
    seed: int = 0


@dataclass
class Tick:
    """What the caller heard in 20 ms."""

    at: float
    ulaw: bytes
    waiting: bool
    """Whether there was anything to play."""


@dataclass
class Event:
    """Something that passed between provider and bot."""

    at: float
    kind: str
    detail: dict[str, Any] = field(default_factory=dict)


class Line:
    """One call. `provider` is twilio, telnyx, plivo or exotel."""

    def __init__(
        self, url: str, provider: str = "twilio", conditions: Conditions | None = None, number: int = 0
    ) -> None:
        self.url = url
        self.provider = provider
        self.conditions = conditions or Conditions()
        self.stream_id = f"MZ{number:032x}"
        self.call_id = f"CA{number:032x}"
        self.events: list[Event] = []
        self.heard: list[Tick] = []
        self.played = 0
        """Samples of the bot's that were played."""
        self.changed = asyncio.Event()
        self.closed = False
        self.sending = True
        """Whether the caller's sound is sent at all."""
        self._rng = random.Random(self.conditions.seed * 1000 + number)
        self._buffer: deque[bytes | str] = deque()
        """Packets' sound, and the names of marks between them."""
        self._speech: deque[bytes] = deque()
        self._inbound: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self._outbound: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self._due_in = self._due_out = 0.0
        self._sequence = 0
        self._chunk = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._packet: list[bytes] = []
        self._socket: Any = None
        self._began = 0.0
        self._speaking = False

    # The call

    async def __aenter__(self) -> Line:
        await self.dial()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def dial(self, *, start: bool = True) -> None:
        self._socket = await websockets.connect(self.url, max_size=None, compression=None)
        self._began = time.monotonic()
        if start:
            if self.provider != "plivo":
                self._post(self._connected())
            self.start()
        self._tasks = [asyncio.create_task(job()) for job in (self._send, self._receive, self._arrive, self._run)]

    def start(self, *, stream_id: str | None = None, call_id: str | None = None) -> None:
        """The start message; a second one for tests."""
        self.stream_id = stream_id or self.stream_id
        self._post(self._start(call_id or self.call_id))

    async def hang_up(self) -> None:
        """The caller hangs up: the stream is stopped, then the connection closed."""
        self.note("hangup")
        if self.provider == "plivo":
            pass  # its stream just ends
        else:
            self._post(self._with_id({"event": "stop", "stop": {}}))
        await asyncio.sleep(self.conditions.latency_s + self.conditions.jitter_s + 0.02)
        await self.end()

    async def end(self) -> None:
        """The connection breaks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()
        self.closed = True
        self.changed.set()

    def say(self, sound: NDArray[np.int16]) -> float:
        """The caller speaks from the next packet on (int16 at 8 kHz); its seconds."""
        data = to_ulaw(sound)
        self._speech.extend(data[at : at + TICK].ljust(TICK, b"\xff") for at in range(0, len(data), TICK))
        return len(sound) / RATE

    def press(self, keys: str) -> None:
        for key in keys:
            detail = {"digit": key, "track": "inbound_track", "duration": "100"}
            self._post(self._with_id({"event": "dtmf", "dtmf": detail}))

    @property
    def played_s(self) -> float:
        return self.played / RATE

    @property
    def waiting_s(self) -> float:
        return sum(len(item) for item in self._buffer if isinstance(item, bytes)) / RATE

    def note(self, kind: str, **detail: Any) -> Event:
        event = Event(time.monotonic(), kind, detail)
        self.events.append(event)
        self.changed.set()
        return event

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    # What a caller waits for

    async def until(self, ready: Any, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not ready():
                wrong = self.of("wrong")
                assert not wrong, f"the bot sent what {self.provider} does not take: {wrong[0].detail}"
                self.changed.clear()
                await self.changed.wait()

    async def hear(self, seconds: float, limit: float = 20.0) -> None:
        """Until that much more of the bot's sound was played."""
        target = self.played + round(seconds * RATE)
        await self.until(lambda: self.played >= target, limit)

    async def quiet(self, seconds: float, limit: float = 30.0) -> None:
        """Until nothing has been played for that long."""
        ticks = max(1, round(seconds / TICK_S))
        count = len(self.heard)
        await self.until(
            lambda: len(self.heard) >= count + ticks and not any(t.waiting for t in self.heard[-ticks:]), limit
        )

    def sound(self, since: int = 0, until: int | None = None) -> NDArray[np.int16]:
        """What the caller heard, tick by tick."""
        return from_ulaw(b"".join(tick.ulaw for tick in self.heard[since:until]))

    # Messages

    def _with_id(self, message: dict[str, Any]) -> dict[str, Any]:
        self._sequence += 1
        if self.provider == "twilio":
            return message | {"sequenceNumber": str(self._sequence), "streamSid": self.stream_id}
        if self.provider == "telnyx":
            return message | {"sequence_number": str(self._sequence), "stream_id": self.stream_id}
        if self.provider == "plivo":
            return message | {"sequenceNumber": self._sequence, "streamId": self.stream_id}
        return message | {"sequence_number": self._sequence, "stream_sid": self.stream_id}

    def _connected(self) -> dict[str, Any]:
        if self.provider == "twilio":
            return {"event": "connected", "protocol": "Call", "version": "1.0.0"}
        return {"event": "connected", "version": "1.0.0"} if self.provider == "telnyx" else {"event": "connected"}

    def _start(self, call_id: str) -> dict[str, Any]:
        ulaw = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start: dict[str, Any]
        if self.provider == "twilio":
            start = {"streamSid": self.stream_id, "accountSid": "AC0", "callSid": call_id, "tracks": ["inbound"]}
            start |= {"mediaFormat": ulaw, "customParameters": {"from_number": "+15550100"}}
        elif self.provider == "telnyx":
            start = {
                "user_id": "u",
                "call_control_id": call_id,
                "call_session_id": "s",
                "from": "+15550100",
                "to": "+1555",
            }
            start |= {"media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}, "tags": []}
        elif self.provider == "plivo":
            start = {"callId": call_id, "streamId": self.stream_id, "accountId": "1", "tracks": ["inbound"]}
            start |= {"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000}}
        else:
            start = {
                "stream_sid": self.stream_id,
                "call_sid": call_id,
                "account_sid": "ex",
                "from": "0555",
                "to": "0556",
            }
            start |= {"media_format": {"encoding": "raw/slin", "sample_rate": "8000", "bit_rate": "128kbps"}}
        return self._with_id({"event": "start", "start": start})

    def _media(self, ulaw: bytes) -> dict[str, Any]:
        self._chunk += 1
        if self.provider == "exotel":
            ulaw = from_ulaw(ulaw).astype("<i2").tobytes()
        stamp = str(round((time.monotonic() - self._began) * 1000))
        media = {"chunk": str(self._chunk), "timestamp": stamp, "payload": base64.b64encode(ulaw).decode()}
        if self.provider != "exotel":
            media["track"] = "inbound"
        return self._with_id({"event": "media", "media": media})

    def _return_mark(self, name: str) -> None:
        if self.provider == "plivo":
            self._post({"event": "playedStream", "streamId": self.stream_id, "name": name})
        else:
            self._post(self._with_id({"event": "mark", "mark": {"name": name}}))

    # To the bot

    def _post(self, message: dict[str, Any]) -> None:
        """Put a message on its way."""
        now = time.monotonic()
        late = self.conditions.latency_s + self._rng.uniform(0, self.conditions.jitter_s)
        self._due_out = max(self._due_out, now + late)
        self._outbound.put_nowait((self._due_out, json.dumps(message)))

    async def _send(self) -> None:
        while True:
            due, text = await self._outbound.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                await self._socket.send(text)
            except websockets.ConnectionClosed:
                return

    # From the bot

    async def _receive(self) -> None:
        try:
            async for text in self._socket:
                now = time.monotonic()
                late = self.conditions.latency_s + self._rng.uniform(0, self.conditions.jitter_s)
                self._due_in = max(self._due_in, now + late)
                self._inbound.put_nowait((self._due_in, text))
        except websockets.ConnectionClosed:
            pass
        finally:
            self.note("closed", code=self._socket.close_code)
            self.closed = True
            self.changed.set()

    async def _arrive(self) -> None:
        while True:
            due, text = await self._inbound.get()
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            try:
                self._take(json.loads(text))
            except (AssertionError, KeyError, ValueError) as error:
                self.note("wrong", why=f"{type(error).__name__}: {error}", message=text[:200])

    def _take(self, message: dict[str, Any]) -> None:
        event = message.get("event", "")
        owner = {"twilio": "streamSid", "plivo": "streamId", "exotel": "stream_sid"}.get(self.provider)
        if owner and message.get(owner) != self.stream_id:
            self.note("stray", event=event, stream=message.get(owner))
            return
        if event in ("media", "playAudio"):
            data = base64.b64decode(message["media"]["payload"])
            if self.provider == "exotel":
                assert len(data) % 320 == 0, f"Exotel takes multiples of 320 bytes, not {len(data)}"
                assert len(data) >= 3200, f"Exotel takes 3200 bytes and more, not {len(data)} bytes"
                data = to_ulaw(np.frombuffer(data, dtype="<i2"))
            if self.provider == "plivo":
                assert message["media"]["contentType"] == "audio/x-mulaw"
                assert message["media"]["sampleRate"] == 8000
            self.note("media", samples=len(data))
            self._buffer.append(data)
        elif event in ("mark", "checkpoint"):
            name = message["name"] if self.provider == "plivo" else message["mark"]["name"]
            self.note("mark", name=name)
            if self._buffer:
                self._buffer.append(name)
            else:
                self._return_mark(name)
        elif event in ("clear", "clearAudio"):
            names = [item for item in self._buffer if isinstance(item, str)]
            self.note("clear", waiting_s=self.waiting_s, played_s=self.played_s, marks=len(names))
            self._buffer.clear()
            if self.provider == "plivo":
                self._post(self._with_id({"event": "clearedAudio"}))
            else:
                for name in names:
                    self._return_mark(name)
        else:
            self.note("unknown", message=message)

    # The caller's leg

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            due += TICK_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._play(due - TICK_S)
            self._speak()

    def _play(self, at: float) -> None:
        """The packet that began at `at` has been played."""
        parts: list[bytes] = []
        size = 0
        while self._buffer and size < TICK:
            head = self._buffer.popleft()
            if isinstance(head, str):
                self._return_mark(head)
                continue
            take = head[: TICK - size]
            if len(take) < len(head):
                self._buffer.appendleft(head[len(take) :])
            parts.append(take)
            size += len(take)
        while self._buffer and isinstance(self._buffer[0], str):
            self._return_mark(str(self._buffer.popleft()))
        self.played += size
        ulaw = b"".join(parts).ljust(TICK, b"\xff")
        if size and self._rng.random() < self.conditions.loss:
            ulaw = SILENCE
        self.heard.append(Tick(at, ulaw, bool(size)))
        self.changed.set()

    def _speak(self) -> None:
        packet = self._speech.popleft() if self._speech else SILENCE
        speaks = packet is not SILENCE
        if speaks != self._speaking:
            self._speaking = speaks
            self.note("speaking" if speaks else "spoken")
        if not self.sending or self._rng.random() < self.conditions.loss:
            return
        self._packet.append(packet)
        if len(self._packet) >= (5 if self.provider == "exotel" else 1):
            self._post(self._media(b"".join(self._packet)))
            self._packet.clear()


# What was heard, in figures


def rms(ulaw: bytes) -> float:
    return float(np.sqrt(np.mean((from_ulaw(ulaw) / 32768.0) ** 2)))


def gaps_s(ticks: list[Tick]) -> list[float]:
    """Pauses in playing between what was played, for want of anything to play."""
    found: list[float] = []
    empty: int | None = None
    for tick in ticks:
        if tick.waiting:
            if empty:
                found.append(empty * TICK_S)
            empty = 0
        elif empty is not None:
            empty += 1
    return found


def load(path: Path) -> NDArray[np.int16]:
    """A recording, 16-bit mono at 8 kHz."""
    with wave.open(str(path), "rb") as file:
        assert file.getframerate() == RATE
        assert file.getnchannels() == 1
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.int16)


CLIP = Path(__file__).parent / "phone_caller.wav"


# A process of its own


async def play(line: Line, steps: list[str], clip: NDArray[np.int16]) -> dict[str, Any]:
    failed = ""
    said = 0
    try:
        async with line:
            for step in steps:
                verb, _, value = step.partition(":")
                line.note("step", step=step)
                if verb == "hear":
                    await line.hear(float(value))
                elif verb == "quiet":
                    await line.quiet(float(value))
                elif verb == "say":
                    line.say(clip)
                    said = len(line.of("clear"))
                elif verb == "cleared":  # since the caller began to speak
                    await line.until(lambda before=said: len(line.of("clear")) > before, float(value or 30))
                elif verb == "wait":
                    await asyncio.sleep(float(value))
                elif verb == "press":
                    line.press(value)
                elif verb == "hangup":
                    await line.hang_up()
                else:
                    raise ValueError(f"no such step: {step}")
    except (TimeoutError, OSError, websockets.WebSocketException) as error:
        failed = f"{type(error).__name__}: {error}"
    return {
        "failed": failed,
        "events": [[event.at, event.kind, event.detail] for event in line.events if event.kind != "media"],
        "media": [[event.at, event.detail["samples"]] for event in line.of("media")],
        "ticks": [[tick.at, tick.waiting, round(rms(tick.ulaw), 4)] for tick in line.heard],
        "gaps": gaps_s(line.heard),
        "played_s": line.played_s,
    }


async def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    conditions = Conditions(given.latency, given.jitter, given.loss, given.seed)
    clip = load(Path(given.clip))
    lines = [Line(given.url, given.provider, conditions, number) for number in range(given.calls)]

    async def one(number: int, line: Line) -> dict[str, Any]:
        await asyncio.sleep(number * given.stagger)
        return await play(line, given.steps, clip)

    results = await asyncio.gather(*(one(number, line) for number, line in enumerate(lines)))
    if given.sound:
        for number, line in enumerate(lines):
            with wave.open(f"{given.sound}-{number}.wav", "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", ""))
                file.writeframes(line.sound().astype("<i2").tobytes())
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description="Calls to a phone bot, as a provider makes them.")
    parser.add_argument("url")
    parser.add_argument("--provider", default="twilio", choices=("twilio", "telnyx", "plivo", "exotel"))
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--stagger", type=float, default=0.1, help="seconds between the calls' beginnings")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clip", default=str(CLIP), help="what the caller says: 16-bit mono wav at 8 kHz")
    parser.add_argument("--sound", help="write what each caller heard to NAME-0.wav and so on")
    parser.add_argument("--steps", nargs="+", default=["hear:1", "hangup"])
    json.dump(asyncio.run(run(parser.parse_args())), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
