"""One engine per model and process: whoever asks by name shares it, and the last to leave closes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ..backends import create_backend
from ..conversation.synthesizer import Synthesizer


@dataclass(slots=True)
class _Shared:
    users: int = 0
    engine: Synthesizer | None = None
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


_shared: dict[tuple[int, str], _Shared] = {}
"""By event loop and name: an engine belongs to the loop it was started on."""


def _key(model: str) -> tuple[int, str]:
    return id(asyncio.get_running_loop()), model


async def borrow(model: str) -> Synthesizer:
    """The engine of that name, made if nobody has it yet; not started. Give it back by `give_back`.

    One that is dead is closed, which frees its memory, and another one made: see `serves`. It is made beside the event loop:
    importing torch alone takes seconds. Errors: `create_backend`'s.
    """
    entry = _shared.setdefault(_key(model), _Shared())
    entry.users += 1
    try:
        async with entry.making:
            if entry.engine is not None and _dead(entry.engine):
                dead, entry.engine = entry.engine, None
                await dead.aclose()
            if entry.engine is None:
                entry.engine = await asyncio.to_thread(create_backend, model)
            return entry.engine
    except BaseException:
        await give_back(model)
        raise


def serves(model: str, engine: Synthesizer | None) -> bool:
    """Whether this engine, borrowed by that name, is still what its borrowers share; otherwise give it back and borrow again."""
    entry = _shared.get(_key(model))
    return entry is not None and engine is not None and entry.engine is engine and not _dead(engine)


async def give_back(model: str) -> None:
    """Closes the engine when this was its last user."""
    entry = _shared.get(_key(model))
    if entry is None:
        return
    entry.users -= 1
    if entry.users == 0:
        del _shared[_key(model)]
        if entry.engine is not None:
            await entry.engine.aclose()


def _dead(engine: Synthesizer) -> bool:
    """Whether it speaks nothing more. Of the engines, those that can fail for good say so in `failure`."""
    return getattr(engine, "failure", None) is not None
