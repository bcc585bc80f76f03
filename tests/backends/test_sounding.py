"""An engine of codes that is closed while it starts, and one that is gone for good."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.sounding import Sounding
from higgs_voice.conversation.synthesizer import Synthesizer
from higgs_voice.errors import EngineClosedError, EngineDiedError


class Slow(Sounding):
    """Connects when it is told to; closing it may break what is under way."""

    def __init__(self, *, breaks: bool = False) -> None:
        super().__init__("fake", None, None)
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.breaks = breaks
        self.connected = 0

    async def _connect(self) -> Synthesizer:
        self.begun.set()
        await self.go_on.wait()
        if self.breaks:
            raise EngineDiedError("the line broke")
        self.connected += 1
        return FakeSynthesizer()

    async def _disconnect(self) -> None:
        self.connected = 0

    def _load_codec(self) -> None:
        self._decoder = cast(Any, SimpleNamespace(num_codebooks=8, codebook_size=1024, fingerprint="f"))


@pytest.mark.parametrize("breaks", [False, True])
async def test_one_that_is_closed_while_it_starts_is_closed(breaks: bool) -> None:
    engine = Slow(breaks=breaks)
    start = asyncio.create_task(engine.start())
    await engine.begun.wait()
    await engine.aclose()
    engine.go_on.set()
    with pytest.raises(EngineClosedError, match="this engine is closed; create another one"):
        await start
    assert engine.connected == 0
    with pytest.raises(EngineClosedError):
        engine.count_rows(cast(Any, None))


async def test_one_that_is_gone_says_so() -> None:
    engine = Slow()
    engine.go_on.set()
    await engine.start()
    assert engine.failure is None
    engine._failure = EngineDiedError("the process ended")
    assert engine.failure is engine._failure
    await engine.aclose()
