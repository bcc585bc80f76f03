"""The same suite on the embedded model."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest_asyncio

from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.conversation.synthesizer import Synthesizer
from tests.backends.conformance import Conformance


class TestLocal(Conformance):
    @pytest_asyncio.fixture
    async def engine(self) -> AsyncGenerator[Synthesizer]:
        engine = LocalSynthesizer("nano")
        await engine.start()
        yield engine
        await engine.aclose()
