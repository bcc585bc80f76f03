"""Engines that adapters borrow by name and that can fail for good."""

from __future__ import annotations

import pytest

from higgs_voice.adapters import engines
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.errors import EngineDiedError


class Mortal(FakeSynthesizer):
    """An engine that can fail for good."""

    def __init__(self) -> None:
        super().__init__(script=lambda _: self.failure)
        self.failure: EngineDiedError | None = None
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


def mortals(monkeypatch: pytest.MonkeyPatch) -> list[Mortal]:
    """Engines that are made by name from now on, in order."""
    all_: list[Mortal] = []

    def create(_: str) -> Mortal:
        all_.append(Mortal())
        return all_[-1]

    monkeypatch.setattr(engines, "create_backend", create)
    return all_
