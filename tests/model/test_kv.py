from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.errors import EngineBusyError
from higgs_voice.model.kv import FIRST_CAPACITY, PAGE, ContiguousPool, KvPool, KvShape, PagedPool
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


@pytest.fixture
def paged() -> PagedPool:
    return PagedPool(SHAPE, max_rows=6 * PAGE, max_slots=3, max_positions=5 * PAGE)


def fill(pool: PagedPool, count: int, value: float) -> Any:
    slot = pool.acquire()
    slot.reserve(count)
    slot.append(rows(count))
    pool.data[:, :, pool._pages[slot.index]] = value
    return slot


def test_pages_of_a_prefix_are_held_once(paged: PagedPool) -> None:
    voice = fill(paged, 2 * PAGE + 10, 1.0)
    assert paged.free_rows == 3 * PAGE
    one, two = paged.acquire(), paged.acquire()
    one.copy_from(voice, 2 * PAGE + 10)
    two.copy_from(voice, 2 * PAGE)
    assert paged.free_rows == 2 * PAGE  # only the page that was not full is copied
    voice.release()
    assert paged.free_rows == 3 * PAGE
    # The full pages go when the last holder has gone.
    one.release()
    assert paged.free_rows == 4 * PAGE
    two.release()
    assert paged.free_rows == 6 * PAGE


def test_a_shared_page_is_copied_before_it_is_written(paged: PagedPool) -> None:
    voice = fill(paged, 2 * PAGE, 1.0)
    one = paged.acquire()
    one.copy_from(voice, 2 * PAGE)
    one.crop(PAGE + 5)
    one.reserve(PAGE + 20)
    ours, theirs = paged._pages[one.index], paged._pages[voice.index]
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]
    assert paged.table[one.index, :2].tolist() == ours
    assert (paged.data[:, :, ours[1]] == 1.0).all()
    paged.data[:, :, ours[1]] = 2.0
    assert (paged.data[:, :, theirs] == 1.0).all()


def test_pages_are_refused_as_rows_are(paged: PagedPool) -> None:
    one, two = fill(paged, 4 * PAGE, 1.0), paged.acquire()
    with pytest.raises(EngineBusyError, match="full"):
        two.reserve(2 * PAGE + 1)
    two.reserve(2 * PAGE)
    with pytest.raises(EngineBusyError, match="full"):
        one.reserve(4 * PAGE + 1)
    with pytest.raises(EngineBusyError, match="set up for 320 rows"):
        one.reserve(5 * PAGE + 1)
    three = paged.acquire()
    one.crop(PAGE + 1)
    one.reserve(PAGE + 2)
    two.reserve(4 * PAGE)
    with pytest.raises(EngineBusyError):
        three.copy_from(one, PAGE + 1)
    assert three.length == 0
