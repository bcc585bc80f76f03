from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.errors import EngineBusyError
from higgs_voice.model.kv import FIRST_CAPACITY, ContiguousPool, KvPool, KvShape
from higgs_voice.model.prompt import Rows

SHAPE = KvShape(layers=2, heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"), num_codebooks=3)


def rows(count: int, first: int = 0) -> Rows:
    return Rows.of_text(np.arange(first, first + count, dtype=np.int32), 3)


@pytest.fixture
def pool() -> KvPool:
    return ContiguousPool(SHAPE, max_rows=4 * FIRST_CAPACITY, max_slots=3)


def test_a_slot_knows_its_rows(pool: KvPool) -> None:
    slot = pool.acquire()
    slot.append(rows(1000))
    slot.append_audio(np.array([1, 2, 3], dtype=np.int16), 77)
    assert slot.rows.common_prefix(rows(1000)) == slot.length - 1 == 1000
    assert slot.rows.codes[-1].tolist() == [1, 2, 3]
    slot.crop(10)
    slot.append(rows(3, first=50))
    assert slot.rows.tokens.tolist() == [*range(10), 50, 51, 52]
    with pytest.raises(ValueError, match="crop"):
        slot.crop(14)


def test_audio_rows_go_on_past_the_first_capacity(pool: KvPool) -> None:
    slot = pool.acquire()
    for index in range(FIRST_CAPACITY * 2 + 5):
        slot.append_audio(np.full(3, index % 7, dtype=np.int16), 77)
    assert slot.rows.codes[:, 0].tolist() == [index % 7 for index in range(FIRST_CAPACITY * 2 + 5)]


def test_too_much_is_refused_and_hurts_nobody(pool: KvPool) -> None:
    one, two = pool.acquire(), pool.acquire()
    one.reserve(3 * FIRST_CAPACITY)
    two.reserve(20)
    with pytest.raises(EngineBusyError, match="full"):
        two.reserve(FIRST_CAPACITY + 1)
    assert pool.free_rows == 0
    two.reserve(FIRST_CAPACITY)
    one.release()
    two.reserve(4 * FIRST_CAPACITY)


def test_slots_are_refused_and_come_back(pool: KvPool) -> None:
    slots = [pool.acquire() for _ in range(3)]
    assert sorted(slot.index for slot in slots) == [0, 1, 2]
    with pytest.raises(EngineBusyError, match="all 3"):
        pool.acquire()
    slots[1].reserve(100)
    slots[1].release()
    slots[1].release()  # again: nothing happens
    assert pool.slots == 2
    assert pool.free_rows == pool.max_rows
    assert pool.acquire().length == 0


def test_an_allocation_that_fails_is_busy_not_a_crash(pool: KvPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    slot = pool.acquire()
    slot.reserve(10)
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(EngineBusyError):
        slot.reserve(FIRST_CAPACITY + 1)
    slot.reserve(FIRST_CAPACITY)
