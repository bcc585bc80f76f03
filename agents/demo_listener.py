"""The second peer of the demo, a process of its own: it hears what comes over WebRTC, writes it down, and speaks when told.

Lines of JSON. It prints its offer, then takes ``{"answer": sdp}``, ``{"say": wav}`` and ``{"leave": npz}``, where it
writes the arrival time (``time.time``) and the sound of every 20 ms that it received. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import fractions
import json
import os
import sys
import time
import wave
from contextlib import suppress
from typing import Any

import aioice.ice
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame
from numpy.typing import NDArray

RATE = 24000
FRAME = RATE // 50


def stay_on_loopback() -> None:
    """Let ICE use this machine's own address, and only that one: the demo needs no network."""

    def addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return ["127.0.0.1"]

    aioice.ice.get_host_addresses = addresses


def tell(**message: Any) -> None:
    with suppress(BrokenPipeError):  # the demo was killed
        os.write(1, json.dumps(message).encode() + b"\n")


class Mouth(MediaStreamTrack):
    """Silence, until it is given something to say."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._sound: NDArray[np.int16] = np.zeros(0, dtype=np.int16)
        self._fresh = False
        self._count = 0
        self._start = 0.0

    def say(self, sound: NDArray[np.int16]) -> None:
        self._sound = sound
        self._fresh = True

    async def recv(self) -> AudioFrame:
        if not self._start:
            self._start = time.time()
        wait = self._start + self._count * 0.02 - time.time()
        if wait > 0:
            await asyncio.sleep(wait)
        piece, self._sound = self._sound[:FRAME], self._sound[FRAME:]
        if self._fresh:
            self._fresh = False
            tell(speaking=time.time(), seconds=(len(piece) + len(self._sound)) / RATE)
        frame = AudioFrame.from_ndarray(np.pad(piece, (0, FRAME - len(piece)))[None, :], layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._count * FRAME
        frame.time_base = fractions.Fraction(1, RATE)
        self._count += 1
        return frame


def load(path: str) -> NDArray[np.int16]:
    """A line to say, from its first sound on."""
    with wave.open(path, "rb") as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    loud = np.flatnonzero(np.abs(sound.astype(np.int32)) > 1000)
    return sound[loud[0] :] if loud.size else sound


async def main() -> None:
    stay_on_loopback()
    arrivals: list[float] = []
    sounds: list[NDArray[np.int16]] = []
    tasks: list[asyncio.Task[None]] = []
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    mouth = Mouth()
    peer.addTrack(mouth)

    async def listen(track: MediaStreamTrack) -> None:
        while True:
            frame = await track.recv()
            arrivals.append(time.time())
            assert isinstance(frame, AudioFrame)
            sound = np.asarray(frame.to_ndarray(), dtype=np.int16)  # [1, samples * channels], 48 kHz
            sounds.append(sound.reshape(-1, len(frame.layout.channels))[:, 0].copy())

    @peer.on("track")
    def on_track(track: MediaStreamTrack) -> None:  # pyright: ignore[reportUnusedFunction]
        tasks.append(asyncio.create_task(listen(track)))

    @peer.on("connectionstatechange")
    def on_state() -> None:  # pyright: ignore[reportUnusedFunction]
        tell(state=peer.connectionState)

    await peer.setLocalDescription(await peer.createOffer())
    tell(offer=peer.localDescription.sdp)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        message = json.loads(line)
        if "answer" in message:
            await peer.setRemoteDescription(RTCSessionDescription(sdp=message["answer"], type="answer"))
        elif "say" in message:
            mouth.say(load(message["say"]))
        elif "leave" in message:
            size = min((len(sound) for sound in sounds), default=0)
            heard = np.stack([sound[:size] for sound in sounds]) if sounds else np.zeros((0, 0), dtype=np.int16)
            np.savez(message["leave"], arrivals=np.array(arrivals), sounds=heard)
            break
    for task in tasks:
        task.cancel()
    await peer.close()
    tell(left=True)


if __name__ == "__main__":
    asyncio.run(main())
