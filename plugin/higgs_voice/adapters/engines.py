"""One engine per model and process: whoever asks by name shares it, and the last to leave closes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ..backends import create_backend
from ..conversation.synthesizer import Synthesizer


@dataclass(slots=True)
class _Shared:
    engine: Synthesizer
    users: int = 0


_shared: dict[tuple[int, str], _Shared] = {}
"""By event loop and name: an engine belongs to the loop it was started on."""


def _key(model: str) -> tuple[int, str]:
    return id(asyncio.get_running_loop()), model


def borrow(model: str) -> Synthesizer:
    """The engine of that name, made if nobody has it yet; not started. Give it back by `give_back`."""
    entry = _shared.get(_key(model))
    if entry is None:
        entry = _shared[_key(model)] = _Shared(create_backend(model))
    entry.users += 1
    return entry.engine


async def give_back(model: str) -> None:
    """Closes the engine when this was its last user."""
    entry = _shared.get(_key(model))
    if entry is None:
        return
    entry.users -= 1
    if entry.users == 0:
        del _shared[_key(model)]
        await entry.engine.aclose()
