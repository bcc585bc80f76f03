"""A server that is lost in mid-sentence, in a conversation on the embedded voice, with sampling: the one that takes over prefills what
the lost one had kept and what it had said, and goes on behind that. In float32 it says what the lost one would have said."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from higgs_voice import PcmChunk, Sampling, SessionSettings, VoiceSession
from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.model.loading import Loaded, load
from higgs_voice.server.app import Server, ServerSettings
from tests.server.proxy import Proxy

BEFORE = ("Hello there, how are you doing today?", "The train is late again.", "I will call you back tomorrow.")
LAST = "Please hold the line for a moment while I look it up for you."
CUT_AFTER_S = 1.3


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("nano", device="cpu", dtype="float32")


async def said(session: VoiceSession, text: str) -> float:
    """Speaks, and takes it for heard."""
    speech = session.speak(text)
    seconds = sum([event.duration_s async for event in speech if isinstance(event, PcmChunk)])
    session.settle(speech.id, seconds)
    return seconds


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
async def test_a_server_that_is_lost_in_mid_sentence_is_taken_over_from(loaded: Loaded, kv_dtype: str) -> None:
    settings = SessionSettings(sampling=Sampling(seed=1, max_new_tokens=100))
    async with AsyncExitStack() as stack:
        servers: list[Server] = []
        for _ in range(2):
            engine = LocalSynthesizer(loaded=loaded, threads=1, kv_dtype=kv_dtype)
            await engine.start()
            stack.push_async_callback(engine.aclose)
            servers.append(await stack.enter_async_context(Server(engine, ServerSettings(port=0, grace_s=0.0))))
        proxy = await stack.enter_async_context(Proxy(servers[0].port))
        client = RemoteSynthesizer(proxy.url, window_s=2.0)
        stack.push_async_callback(client.aclose)
        async with VoiceSession(client, settings=settings) as session:
            for text in BEFORE:
                await said(session, text)
            heard, cut = 0.0, False
            speech = session.speak(LAST)
            async for event in speech:
                if not isinstance(event, PcmChunk):
                    continue
                heard += event.duration_s
                if heard > CUT_AFTER_S and not cut:
                    cut, proxy.target = True, servers[1].port
                    proxy.cut()
            session.settle(speech.id, heard)
            codes = session.exchanges[-1].codes
            whole = codes.tobytes()
        assert cut
        assert heard == pytest.approx(codes.shape[1] / 25, abs=0.001)
        assert 1.5 < heard < 7.0
        if kv_dtype == "bfloat16":
            return  # where a context that is read anew gives other codes
        # what nobody interrupted
        async with VoiceSession(client, settings=settings) as session:
            for text in (*BEFORE, LAST):
                alone = await said(session, text)
            assert session.exchanges[-1].codes.tobytes() == whole
        assert heard == pytest.approx(alone, abs=0.001)
