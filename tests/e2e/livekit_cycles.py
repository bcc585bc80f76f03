"""Two hundred calls, one after the other, through the plugin and a server with the embedded voice. Run by `make test-livekit`."""

from __future__ import annotations

import asyncio
import gc

import pytest
from livekit.plugins import higgs

from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.server.app import Server, ServerSettings
from tests.adapters.livekit_kit import CONN
from tests.server.proxy import until
from tests.virtual_time import no_more_tasks_than

pytestmark = pytest.mark.timeout(400)


async def call(url: str, number: int) -> None:
    """Connect, speak a moment, hang up; every third one in mid-word."""
    async with higgs.TTS(model=url, sampling=higgs.Sampling(seed=number, max_new_tokens=12)) as tts:
        async with tts.stream(conn_options=CONN) as stream:
            stream.push_text(f"Hello, caller number {number}.")
            stream.end_input()
            async for _ in stream:
                if number % 3 == 0:
                    break


async def test_two_hundred_calls_leave_no_task_no_session_and_no_byte_of_context() -> None:
    engine = LocalSynthesizer("nano", device="cpu")
    try:
        async with Server(engine, ServerSettings(port=0, max_chunks_per_minute=10**6)) as server:
            hub = server.hub

            async def quiet() -> None:
                """Nobody is there, and the engine's thread has heard of it."""
                await until(lambda: not hub.clients and not hub.sessions and not engine.active, 10)
                await asyncio.sleep(0.5)

            await call(server.url, 0)
            await call(server.url, 1)
            await quiet()
            kept = engine.kv_bytes  # the prefix of the voice is kept for whoever comes next
            gc.collect()
            before = asyncio.all_tasks()
            most = 0
            for number in range(200):
                await call(server.url, number)
                most = max(most, engine.kv_bytes)
            assert most > kept  # a call holds something while it lasts
            await quiet()
            assert engine.kv_bytes == kept
            await no_more_tasks_than(before)
    finally:
        await engine.aclose()
