"""A call handed over in mid-conversation: on the embedded voice, greedy in float32, its codes are those of the call that stayed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from higgs_voice import PcmChunk, Reference, Sampling, SessionSettings, Voice, VoiceSession, Window
from higgs_voice.backends.local import Guards, LocalSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.conversation.synthesizer import Synthesizer
from higgs_voice.model.loading import Loaded, load
from higgs_voice.server.app import Server, ServerSettings

GUARDS = Guards(base_s=600.0, silence_s=600.0, min_frames=1, retries=0)
"""Every chunk is as long as `SETTINGS` says."""
SETTINGS = SessionSettings(
    sampling=Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=36),
    window=Window.seconds(2.0, 4.0),
)
TEXTS = ("Hello there, how are you?", "The train is late.", "I will call you back.", "Yes, of course.", "It is Monday.")
MOVED_AFTER = 2


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("nano", device="cpu", dtype="float32")


@asynccontextmanager
async def started(loaded: Loaded) -> AsyncGenerator[LocalSynthesizer]:
    engine = LocalSynthesizer(loaded=loaded, guards=GUARDS, threads=1)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def voice_of() -> Voice:
    tone = 0.3 * np.sin(np.arange(24000) * 0.05).astype(np.float32)
    return Voice.create(speakers="feminine", references=Reference.from_array(tone, 24000, "What the clip says."))


async def turns(session: VoiceSession, clock: Clock, first: int, last: int) -> list[tuple[str, bytes]]:
    """Every exchange that was ever in the context; the last turn but one is interrupted."""
    held: dict[tuple[str, bytes], None] = {}
    for turn in range(first, last):
        speech = session.speak(TEXTS[turn])
        length = sum([event.duration_s async for event in speech if isinstance(event, PcmChunk)])
        assert length > 0.5
        clock.now += length
        if turn == len(TEXTS) - 2:
            speech.stop()
            session.settle(speech.id, length * 0.6)
        else:
            session.settle(speech.id, length)
        held |= dict.fromkeys((item.text, item.codes.tobytes()) for item in session.exchanges)
    return list(held)


async def stayed(engine: Synthesizer, voice: Voice | None) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The snapshot after `MOVED_AFTER` turns, and what the session that went on remembers of all of them."""
    clock = Clock()
    async with VoiceSession(engine, voice=voice, settings=SETTINGS, clock=clock) as session:
        await turns(session, clock, 0, MOVED_AFTER)
        data = session.snapshot()
        return data, await turns(session, clock, MOVED_AFTER, len(TEXTS))


async def moved(engine: Synthesizer, data: bytes) -> list[tuple[str, bytes]]:
    clock = Clock()
    async with await VoiceSession.restore(engine, data, clock=clock) as session:
        return await turns(session, clock, MOVED_AFTER, len(TEXTS))


@pytest.mark.parametrize("with_clip", [False, True])
async def test_another_engine_goes_on_with_the_same_codes(loaded: Loaded, with_clip: bool) -> None:
    async with started(loaded) as here, started(loaded) as there:
        data, expected = await stayed(here, voice_of() if with_clip else None)
        assert len(expected) >= 3
        assert await moved(there, data) == expected
        # and the context is what makes it so
        async with VoiceSession(there, voice=voice_of() if with_clip else None, settings=SETTINGS) as fresh:
            assert (await turns(fresh, Clock(), MOVED_AFTER, MOVED_AFTER + 1))[0] not in expected


async def test_a_server_takes_it_up_and_gives_it_back(loaded: Loaded) -> None:
    async with started(loaded) as here, started(loaded) as there, Server(there, ServerSettings(port=0)) as server:
        data, expected = await stayed(here, voice_of())
        client = RemoteSynthesizer(server.url)
        try:
            assert await moved(client, data) == expected
            async with await VoiceSession.restore(client, data) as session:
                back = session.snapshot()
        finally:
            await client.aclose()
        assert await moved(here, back) == expected


async def test_a_server_in_another_process_takes_it_up(loaded: Loaded) -> None:
    async with started(loaded) as here:
        data, expected = await stayed(here, None)
    words = ("serve", "--model", "nano", "--port", "0", "--dtype", "float32", "--device", "cpu")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "higgs_voice.cli", *words, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        said = b""
        while b"ready at" not in said:
            said = await process.stderr.readline()
            assert said, "the server ended"
        client = RemoteSynthesizer(said.split()[-1].decode())
        try:
            assert await moved(client, data) == expected
        finally:
            await client.aclose()
    finally:
        process.terminate()
        await process.wait()
