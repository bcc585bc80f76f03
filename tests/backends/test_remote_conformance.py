"""The same suite on the engine of tones, on the same engine across a websocket, and on the embedded model across one."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest_asyncio

from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.conversation.synthesizer import Synthesizer
from higgs_voice.server.app import Server, ServerSettings
from tests.backends.conformance import Conformance


class TestFake(Conformance):
    @pytest_asyncio.fixture
    async def engine(self) -> AsyncGenerator[Synthesizer]:
        engine = FakeSynthesizer()
        await engine.start()
        yield engine
        await engine.aclose()


class TestRemote(Conformance):
    @pytest_asyncio.fixture
    async def engine(self) -> AsyncGenerator[Synthesizer]:
        async with Server(FakeSynthesizer(), ServerSettings(port=0)) as server:
            client = RemoteSynthesizer(server.url)
            await client.start()
            yield client
            await client.aclose()


class TestRemoteModel(Conformance):
    @pytest_asyncio.fixture
    async def engine(self) -> AsyncGenerator[Synthesizer]:
        settings = ServerSettings(port=0, admit_beyond_capacity=True)
        async with Server(LocalSynthesizer("nano"), settings) as server:
            client = RemoteSynthesizer(server.url)
            await client.start()
            yield client
            await client.aclose()
