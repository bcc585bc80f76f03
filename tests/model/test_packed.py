"""Prefills of few rows at once, of one context or several: the keys, values and tokens of the plain way, and which way is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.config import Sampling
from higgs_voice.model import packed as module
from higgs_voice.model import runner as runner_module
from higgs_voice.model.forward import Forward
from higgs_voice.model.kv import PAGE, KvSlot, PagedPool
from higgs_voice.model.loading import Loaded
from higgs_voice.model.packed import PACKS, RowsGraphed, apart, table_of, tolerance
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import Runner
from tests.model.packing import Replayed, fake_capture, plain_lines, plainly
from tests.model.test_forward import mixed, pool_for

GREEDY = Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=12)
SYSTEM = "Generate audio following instruction."
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures(plainly.__name__)


@pytest.fixture
def plain(nano: Loaded) -> Runner:
    return Runner(nano, max_rows=4096, max_slots=8, paged=True)


@pytest.fixture
def packing(nano: Loaded) -> Runner:
    """What a GPU's runner does, uncaptured."""
    return Runner(nano, max_rows=4096, max_slots=8, paged=True, graphs=True)


def held(slot: KvSlot) -> torch.Tensor:
    """Keys and values [layers, 2, heads, length, D]."""
    pool: Any = slot._pool
    return pool.data[:, :, pool._pages[slot.index]].transpose(2, 3).flatten(3, 4)[:, :, :, : slot.length]


def assert_equal(found: KvSlot | torch.Tensor, expected: KvSlot | torch.Tensor) -> None:
    """Keys and values, to 1e-5 of the largest."""
    one, other = (held(each) if isinstance(each, KvSlot) else each for each in (found, expected))
    torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


def new_rows(runner: Runner, kind: str, codes: Any, count: int, seed: int) -> Rows:
    rows = runner.prompts.exchange("This is a sentence, and that is one too.", codes(count, seed=seed))
    first = int(np.flatnonzero(rows.audio)[0])
    begin, end = {"text": (0, count), "audio": (first, first + count), "mixed": (first - 5, len(rows))}[kind]
    return rows[begin:end]


def speak(runner: Runner, slot: KvSlot) -> list[list[int]]:
    generation = runner.start(slot, GREEDY, 0)
    return [runner.step([generation])[0].row.tolist() for _ in range(GREEDY.max_new_tokens - 1)]  # pyright: ignore


PASTS = (0, 1, PAGE - 3, PAGE, 150)


@pytest.mark.parametrize("kind", ["text", "audio", "mixed"])
def test_packed_rows_have_the_keys_and_values_of_a_plain_prefill(
    plain: Runner, packing: Runner, codes: Any, kind: str
) -> None:
    """In float32, of one context and of several at once, behind none, part of a page and several; and then the same tokens."""
    assert (plain.packed, packing.packed) == (0, PACKS[-1])
    pasts = [plain.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(160, seed=past))])[:past] for past in PASTS]
    parts = [new_rows(plain, kind, codes, 3 + 2 * seed, seed) for seed in range(len(PASTS))]
    if kind == "mixed":
        assert all(part.audio.any() and not part.audio.all() for part in parts)
    for together in ([0], [1, 2], [4, 2, 3], [3, 0]):
        slots: list[tuple[KvSlot, KvSlot]] = []
        for index in together:
            one, other = plain.pool.acquire(), packing.pool.acquire()
            plain.prefill(one, pasts[index] + parts[index])
            other.reserve(PASTS[index] + len(parts[index]))
            if PASTS[index]:
                packing._prefill(other, pasts[index])
            slots.append((one, other))
        assert sum(len(parts[index]) for index in together) <= packing.packed
        prefilled = packing._prefill_packed([other for _, other in slots], [parts[index] for index in together])
        assert prefilled is not None
        for one, other in slots:
            assert other.rows.common_prefix(one.rows) == one.length == other.length
            assert_equal(other, one)
            opening = plain.prompts.opening("Yes.")
            plain.prefill(one, opening)
            packing.prefill(other, opening)
            assert speak(plain, one) == speak(packing, other)
        for slot in (slot for pair in slots for slot in pair):
            slot.release()


def test_who_else_is_packed_changes_nothing(packing: Runner, codes: Any) -> None:
    """Not beside whom, not at which place, not with which padding."""
    parts = [new_rows(packing, "mixed", codes, count, count) for count in (3, 10, 20)]

    def prefilled(order: list[int], padding: int = 0) -> dict[int, torch.Tensor]:
        slots = {index: packing.pool.acquire() for index in order}
        for index, slot in slots.items():
            slot.reserve(len(parts[index]))
        packed = packing._packed
        assert packed is not None
        lines = np.repeat([slots[index].index for index in order], [len(parts[index]) for index in order])
        positions = np.concatenate([np.arange(len(parts[index])) for index in order])
        table = table_of(lines, positions, Rows.concat([parts[index] for index in order]))
        packed(np.concatenate((table, np.repeat(packed._padding, padding, axis=1)), axis=1), CPU)
        found: dict[int, torch.Tensor] = {}
        for index, slot in slots.items():
            slot.append(parts[index])
            found[index] = held(slot).clone()
            slot.release()
        return found

    alone = {index: prefilled([index])[index] for index in range(3)}
    for order, padding in (([0, 1, 2], 0), ([2, 0], 5), ([1], 30)):
        for index, found in prefilled(order, padding).items():
            assert_equal(found, alone[index])


def test_the_published_configuration_is_packed_as_it_is_prefilled(tiny: Any) -> None:
    """Three queries a key, two paths with norms that differ: hidden states of every row."""
    forward, pool, other = Forward(tiny), pool_for(tiny, PagedPool), pool_for(tiny, PagedPool)
    assert isinstance(other, PagedPool)
    rows = mixed(tiny.config, 90, seed=1)
    hidden: list[torch.Tensor] = []
    for each in (pool, other):
        slot = each.acquire()
        slot.reserve(len(rows))
        table = torch.from_numpy(table_of([slot.index] * len(rows), np.arange(len(rows)), rows))
        lines, positions, tokens, audio = table[:4]
        if each is other:
            attend = other.decode_lines(lines, positions)
            hidden.append(forward.mixed(tokens, table[4:].t(), audio.bool(), positions, attend))
        else:
            kinds = (torch.from_numpy(np.flatnonzero(mask)) for mask in (rows.audio, ~rows.audio))
            hidden.append(forward.prefill(tokens, table[4:].t(), *kinds, 0, each.prefill(slot, len(rows))))
    torch.testing.assert_close(hidden[1], hidden[0], atol=1e-4, rtol=1e-4)
    assert apart(hidden[1], hidden[0]) < 1e-4


def test_a_prefix_that_is_shared_is_not_written_over(packing: Runner, codes: Any) -> None:
    voice = packing.pool.acquire()
    prefix = packing.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(40))])
    packing.prefill(voice, prefix)
    before = held(voice).clone()
    slots = [packing.pool.acquire() for _ in range(2)]
    parts = [packing.prompts.opening(text) for text in ("Yes.", "Not yet, I think.")]
    for slot, part in zip(slots, parts, strict=True):
        slot.copy_from(voice, len(prefix))
        slot.crop(PAGE - 2)
        slot.reserve(PAGE - 2 + len(part))
    packing.prefill_together(slots, parts)
    assert torch.equal(held(voice), before)
    for slot, part in zip(slots, parts, strict=True):
        fresh = packing.pool.acquire()
        fresh.reserve(PAGE - 2 + len(part))
        packing._prefill(fresh, prefix[: PAGE - 2] + part)
        assert_equal(slot, fresh)


# Which way is taken


def test_pieces_of_few_rows_are_packed_and_others_are_not(packing: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plainly = list[int](), list[int]()
    at_once, one = packing._prefill_packed, packing._prefill
    monkeypatch.setattr(
        packing, "_prefill_packed", lambda *given: [packed.append(len(given[1][0])), at_once(*given)][1]
    )
    monkeypatch.setattr(packing, "_prefill", lambda *given: [plainly.append(len(given[1])), one(*given)][1])
    packing.piece = 256
    slot = packing.pool.acquire()
    for count in (1, 128, 129, 300):
        packing.prefill(slot, Rows.of_text([3] * count, 8))
    assert (packed, plainly) == ([1, 128, 44], [129, 256])
    assert slot.length == 558
    packing.close()
    assert packing.packed == 0


def test_few_rows_behind_a_long_context_are_not_packed(packing: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would read all of it by itself."""
    plainly, one = list[int](), packing._prefill
    monkeypatch.setattr(packing, "_prefill", lambda *given: [plainly.append(len(given[1])), one(*given)][1])
    monkeypatch.setattr(runner_module, "MOST_READ", 60 * 60)
    slot = packing.pool.acquire()
    for _ in range(2):
        packing.prefill(slot, Rows.of_text([3] * 60, 8))
    assert plainly == [60]
    assert slot.length == 120


def test_where_it_cannot_be_packed_one_context_is_prefilled_after_another(
    packing: Runner, plain: Runner, codes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_capture(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(module, "capture", no_capture)
    assert packing._packed is not None
    packing._packed.disabled = False
    parts = [packing.prompts.opening(text) for text in ("Yes.", "Not yet.")]
    slots = [packing.pool.acquire() for _ in parts]
    for slot, part in zip(slots, parts, strict=True):
        slot.reserve(len(part))
    packing.prefill_together(slots, parts)
    assert packing.packed == 0
    assert caplog.text.count("cannot be CUDA graphs here") == 1
    for slot, part in zip(slots, parts, strict=True):
        fresh = plain.pool.acquire()
        plain.prefill(fresh, part)
        assert torch.equal(held(slot), held(fresh))


def captures(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> RowsGraphed:
    """With something else in a graph's place."""
    monkeypatch.setattr(module, "capture", fake_capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    assert runner._packed is not None
    runner._packed.disabled = False
    return runner._packed


def test_an_engine_captures_its_prefills_when_it_starts(packing: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    graphed = captures(packing, monkeypatch)
    free = packing.pool.free_rows, packing.pool.slots
    packing._warm_up_packed(lambda: False)
    assert tuple(graphed._graphs) == PACKS
    assert packing.packed == PACKS[-1]
    assert (packing.pool.free_rows, packing.pool.slots) == free
    asked = list[int]()
    graphed._graphs.clear()
    packing._warm_up_packed(lambda: len(asked) > 1 or asked.append(1) is not None)
    assert tuple(graphed._graphs) == PACKS[:2]


def test_and_leaves_off_what_finds_something_else_than_the_plain_way(
    packing: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Captured and uncaptured they agree here, and are wrong: the last row of each context does not see the one before it."""
    captures(packing, monkeypatch)

    def wrong(pool: PagedPool, lines: torch.Tensor, positions: torch.Tensor) -> Any:
        return plain_lines(pool, lines, torch.where(positions == 7, 6, positions))

    monkeypatch.setattr(PagedPool, "decode_lines", wrong)
    packing._warm_up_packed(lambda: False)
    assert packing.packed == 0
    assert "the engine goes on without" in caplog.text
    slot = packing.pool.acquire()
    packing.prefill(slot, Rows.of_text([3, 4], 8))


# The wrapper


class Pages:
    """What a function over rows writes to, and what it finds there: row i's result is all that stands at its line up to its position."""

    def __init__(self) -> None:
        self.data = torch.zeros(3, 200, dtype=torch.float32)
        self.writes = True

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        line, position, value = table
        if self.writes:
            self.data[line, position] = value.float() + 1
        seen = torch.arange(200)[None] <= position[:, None]
        return (self.data[line] * seen).sum(1, keepdim=True)


def rows_of(count: int, line: int = 1) -> Any:
    return np.stack([np.full(count, line), np.arange(count), np.arange(count) % 7])


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "capture", fake_capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())


@pytest.mark.usefixtures("fakes")
def test_rows_are_padded_to_what_is_captured() -> None:
    pages = Pages()
    graphed = RowsGraphed(pages, padding=np.array([2, 0, 5]))
    for count in (3, 16, 17, 5, 128):
        found = graphed(rows_of(count), CPU)
        assert found is not None
        assert found[:, 0].tolist() == (np.arange(count) % 7 + 1).cumsum().tolist()
        pages.data[1].zero_()
    assert list(graphed._graphs) == [16, 32, 128]
    assert pages.data[2].nonzero().tolist() == [[0]]  # the padding writes to its own place
    assert pages.data[2, 0] == 6
    assert graphed(rows_of(129), CPU) is None
    assert (graphed.most, graphed.failed) == (128, False)


@pytest.mark.usefixtures("fakes")
def test_memory_that_ends_costs_one_size_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()

    def capture(function: Any, device: torch.device, memory: Any) -> Any:
        graph = Replayed(function)
        tried.append(len(graph.out))
        if len(graph.out) in (32, 128):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph, graph.out, graph.out

    monkeypatch.setattr(module, "capture", capture)
    graphed = RowsGraphed(Pages(), padding=np.array([2, 0, 0]))
    assert graphed(rows_of(100), CPU) is None
    assert graphed.most == 64
    assert [graphed(rows_of(count), CPU) is None for count in (100, 20, 20, 3)] == [True, True, False, False]
    assert (tried, graphed.failed) == ([128, 32, 64, 16], False)


class Stale(Replayed):
    """A graph that leaves out what it should write, or does not read what it is given."""

    def replay(self) -> None:
        pass


class Forgetful(Replayed):
    """A graph that looks, and writes nothing."""

    pages = Pages()

    def replay(self) -> None:
        self.pages.writes = False
        super().replay()
        self.pages.writes = True


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("kind", [Stale, Forgetful])
def test_a_graph_that_does_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[Replayed]
) -> None:
    def capture(function: Any, device: torch.device, memory: Any) -> Any:
        graph = kind(function)
        return graph, graph.out, graph.out.clone()

    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(Forgetful, "pages", Pages())
    graphed = RowsGraphed(Forgetful.pages, padding=np.array([2, 0, 0]))
    for _ in range(2):
        assert graphed(rows_of(9), CPU) is None
    assert (graphed.failed, graphed.most) == (True, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "off a plain one" in caplog.text


@pytest.mark.usefixtures("fakes")
def test_whatever_fails_there_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphed = RowsGraphed(Pages(), padding=np.array([2, 0, 0]))
    assert graphed(rows_of(9), CPU) is not None

    def fails(self: Replayed) -> None:
        raise ValueError("no kernel image is available")

    monkeypatch.setattr(Replayed, "replay", fails)
    assert graphed(rows_of(9), CPU) is None
    assert graphed(rows_of(9), CPU) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no kernel image" in caplog.text
    assert graphed.most == 0


def test_how_far_apart_is_told_by_the_worst_row() -> None:
    expected = torch.ones(64, 100)
    found = expected.clone()
    assert apart(found, expected) == 0
    found[3, :50] = 0  # one of many
    assert tolerance(torch.bfloat16) < apart(found, expected) < 1
    found[3, 0] = torch.nan
    assert not apart(found, expected) <= tolerance(torch.bfloat16)
    assert tolerance(torch.float32) == 1e-3
