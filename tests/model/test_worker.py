"""Who is prefilled together and what comes of it, tick by tick and without the worker's thread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from higgs_voice.config import Sampling
from higgs_voice.errors import EngineBusyError, EngineError
from higgs_voice.model import worker as worker_module
from higgs_voice.model.kv import KvSlot, PagedPool
from higgs_voice.model.loading import Loaded
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import Runner
from higgs_voice.model.scheduler import NOT_STARTED, Scheduler
from higgs_voice.model.worker import Job, Worker
from tests.model.packing import plainly

GREEDY = Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=14)
SYSTEM = "Speak."
PREFIX = 12
"""Rows of a voice's own prefix, said to be."""

pytestmark = pytest.mark.usefixtures(plainly.__name__)


class Heard:
    """A stream's consumer."""

    def __init__(self, buffered: float = NOT_STARTED) -> None:
        self.buffered = buffered
        self.frames: list[list[int]] = []
        self.reason: str | None = None
        self.error: Exception | None = None

    def view(self) -> tuple[float, float]:
        return self.buffered, 0.0

    def ended(self, reason: str, error: Exception | None) -> None:
        self.reason, self.error = reason, error


class Desk:
    """A worker that is not started: `ticks` moves it on. What it prefills is noted: of each stream its session and its rows."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner = runner
        self.prefilled: list[list[tuple[str, int]]] = []
        self.heard: dict[str, Heard] = {}
        self.worker = Worker(runner, Scheduler(), self._deliver)
        together = runner.prefill_together

        def prefill_together(slots: list[KvSlot], rows: list[Rows]) -> None:
            noted = [(self._whose(slot), len(part)) for slot, part in zip(slots, rows, strict=True)]
            if noted[0][0]:  # of somebody
                self.prefilled.append(noted)
            together(slots, rows)

        monkeypatch.setattr(runner, "prefill_together", prefill_together)

    def _whose(self, slot: KvSlot) -> str:
        return next((name for name, held in self.worker._sessions.items() if slot in held.slots), "")

    def _deliver(self, moved: Any) -> None:
        for job, frames in moved:
            self.heard[job.session].frames += frames.T.tolist()
            job.timings["ttfa"] = 0.0

    def submit(self, session: str, rows: Rows, *, buffered: float = NOT_STARTED, prefix: int = 0) -> Job:
        self.heard[session] = Heard(buffered)
        job = Job(session, session, rows, prefix, GREEDY, 0, 99, 0, self.heard[session])
        self.worker.submit(job)
        return job

    def ticks(self, count: int = 1) -> None:
        for _ in range(count):
            self.worker._tick()

    def frames(self, session: str) -> NDArray[np.int16]:
        return np.array(self.heard[session].frames)


@pytest.fixture
def desk(nano: Loaded, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Over a runner that packs as one on a GPU does."""
    return Desk(Runner(nano, max_rows=4096, max_slots=12, paged=True, graphs=True), monkeypatch)


def said(desk: Desk, text: str, length: int) -> Rows:
    """A prompt of so many rows."""
    opening = desk.runner.prompts.opening(text)
    return desk.runner.prompts.prefix(SYSTEM * 99)[: length - len(opening)] + opening


def test_those_who_wait_are_prefilled_in_one_go_and_speak_as_each_alone(
    desk: Desk, nano: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {"a": said(desk, "Yes.", 50), "b": said(desk, "No.", 40), "c": said(desk, "Go.", 38)}
    for name, rows in prompts.items():
        desk.submit(name, rows)
    desk.ticks()
    assert desk.prefilled == [[("c", 38), ("b", 40), ("a", 50)]]  # who lacks the least is the first
    assert all(job.generation is not None for job in desk.worker._jobs.values())
    desk.ticks(GREEDY.max_new_tokens)
    plain = Desk(Runner(nano, max_rows=4096, max_slots=12), monkeypatch)
    for name, rows in prompts.items():
        plain.submit(name, rows)
        plain.ticks(GREEDY.max_new_tokens + 1)
        assert plain.heard[name].reason == desk.heard[name].reason == "length"
        np.testing.assert_array_equal(desk.frames(name), plain.frames(name))
        assert len(plain.frames(name)) > 3


def test_on_a_cpu_one_is_prefilled_after_another(nano: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Runner(nano, max_rows=4096, max_slots=12), monkeypatch)
    for name, length in (("a", 50), ("b", 40)):
        desk.submit(name, said(desk, "Yes.", length))
    desk.ticks(2)
    assert desk.prefilled == [[("b", 40)], [("a", 50)]]
    desk.ticks(GREEDY.max_new_tokens)
    again = [desk.submit(name, said(desk, "Yes.", length)) for name, length in (("a", 50), ("b", 40))]
    desk.ticks()
    assert [job.rows_left for job in again] == [0, 0]
    assert [job.generation is not None for job in again] == [True, False]


def test_who_fits_is_taken_along_in_order_and_who_does_not_is_passed_over(desk: Desk) -> None:
    lengths = {"a": 60, "b": 45, "c": 40, "d": 35}
    jobs = {name: desk.submit(name, said(desk, "Yes.", length)) for name, length in lengths.items()}
    desk.ticks()
    assert desk.prefilled == [[("d", 35), ("c", 40), ("b", 45)]]
    assert {name: job.passed_over for name, job in jobs.items()} == {"a": 1, "b": 0, "c": 0, "d": 0}
    desk.ticks()
    assert desk.prefilled[1:] == [[("a", 60)]]


def test_a_long_prompt_goes_by_itself_and_is_not_taken_along(desk: Desk) -> None:
    desk.runner.piece = 256
    long = desk.submit("long", said(desk, "Yes.", 300))
    desk.submit("short", said(desk, "Yes.", 40))
    desk.ticks()
    assert desk.prefilled == [[("short", 40)]]
    desk.submit("other", said(desk, "Yes.", 50))
    long.passed_over = desk.worker._scheduler.patience
    desk.ticks(3)
    # What is left of it in the end goes with others, but no more.
    assert desk.prefilled[1:] == [[("long", 256)], [("long", 44), ("other", 50)]]


@pytest.mark.parametrize(("most", "together"), [(40 * 40 + 45 * 45, True), (40 * 40 + 45 * 45 - 1, False)])
def test_those_who_read_too_much_context_are_not_prefilled_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, most: int, together: bool
) -> None:
    """Each row of a packed prefill reads its whole context by itself."""
    monkeypatch.setattr(worker_module, "MOST_READ", most)
    for name, length in (("a", 40), ("b", 45)):
        desk.submit(name, said(desk, "Yes.", length))
    desk.ticks(1 if together else 2)
    assert desk.prefilled == ([[("a", 40), ("b", 45)]] if together else [[("a", 40)], [("b", 45)]])


def test_who_has_sound_left_does_not_come_along_while_somebody_waits_for_a_first_one(desk: Desk) -> None:
    desk.submit("speaks", said(desk, "Yes.", 30))
    desk.ticks()
    desk.submit("calm", said(desk, "Yes.", 35), buffered=3.0)
    desk.submit("new", said(desk, "Yes.", 40))
    desk.ticks()
    assert desk.prefilled[1:] == [[("new", 40)]]


def test_nobody_who_was_stopped_is_prefilled(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not if that is seen between the plan and the piece."""
    jobs = {name: desk.submit(name, said(desk, "Yes.", length)) for name, length in (("a", 40), ("b", 45), ("c", 50))}
    jobs["a"].listener.view = lambda: desk.worker.stop("a") or (NOT_STARTED, 0.0)  # pyright: ignore
    desk.ticks()
    assert desk.prefilled == [[("b", 45), ("c", 50)]]
    desk.ticks()
    assert desk.heard["a"].reason == "stopped"


@pytest.mark.parametrize("busy", ["a", "b", "c"])
def test_who_has_no_room_waits_and_the_others_go_on(desk: Desk, monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
    lengths = {"a": 40, "b": 45, "c": 43}
    reserve, full = PagedPool.reserve, [True]

    def refuses(pool: PagedPool, slot: KvSlot, length: int) -> None:
        if full[0] and length == lengths[busy]:
            raise EngineBusyError("full")
        reserve(pool, slot, length)

    monkeypatch.setattr(PagedPool, "reserve", refuses)
    monkeypatch.setattr(desk.worker, "_make_room", lambda: True)
    for name, length in lengths.items():
        desk.submit(name, said(desk, "Yes.", length))
    desk.ticks()
    others = [(name, length) for name, length in (("a", 40), ("c", 43), ("b", 45)) if name != busy]
    assert desk.prefilled == [others]
    desk.ticks(2)
    full[0] = False
    desk.ticks()
    assert desk.prefilled[-1] == [(busy, lengths[busy])]
    desk.ticks(GREEDY.max_new_tokens)
    assert {heard.reason for heard in desk.heard.values()} == {"length"}


def test_who_has_no_room_when_none_can_be_made_ends_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = PagedPool.reserve

    def refuses(pool: PagedPool, slot: KvSlot, length: int) -> None:
        if length == 40:
            raise EngineBusyError("full")
        reserve(pool, slot, length)

    monkeypatch.setattr(PagedPool, "reserve", refuses)
    for name, length in (("a", 40), ("b", 45)):
        desk.submit(name, said(desk, "Yes.", length))
    desk.ticks(GREEDY.max_new_tokens + 2)
    assert isinstance(desk.heard["a"].error, EngineBusyError)
    assert desk.heard["b"].reason == "length"


def test_a_launch_that_fails_is_nobodys_until_each_was_tried_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shared: who does no harm speaks, who fails alone too ends."""
    at_once = desk.runner._prefill_packed

    def poisoned(slots: list[KvSlot]) -> bool:
        return any(desk._whose(slot) == "bad" for slot in slots)

    def packed(slots: list[KvSlot], rows: list[Rows]) -> Any:
        if poisoned(slots):
            raise RuntimeError("this one fails")
        return at_once(slots, rows)

    monkeypatch.setattr(desk.runner, "_prefill_packed", packed)
    for name, length in (("a", 40), ("bad", 42), ("b", 45)):
        desk.submit(name, said(desk, "Yes.", length))
    desk.ticks(4)
    assert desk.prefilled == [[("a", 40), ("bad", 42), ("b", 45)], [("a", 40)], [("bad", 42)], [("b", 45)]]
    assert isinstance(desk.heard["bad"].error, EngineError)
    desk.submit("c", said(desk, "Yes.", 40))
    desk.ticks(GREEDY.max_new_tokens + 1)
    assert {desk.heard[name].reason for name in "abc"} == {"length"}
    assert desk.worker.dead is None


def test_a_start_that_fails_takes_nobody_along(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    start = desk.runner.start

    def fails(slot: KvSlot, *given: Any, **named: Any) -> Any:
        if desk._whose(slot) == "bad":
            raise RuntimeError("this one fails")
        return start(slot, *given, **named)

    monkeypatch.setattr(desk.runner, "start", fails)
    for name, length in (("bad", 40), ("b", 45)):
        desk.submit(name, said(desk, "Yes.", length))
    desk.ticks(GREEDY.max_new_tokens + 2)
    assert desk.prefilled == [[("bad", 40), ("b", 45)]]
    assert isinstance(desk.heard["bad"].error, EngineError)
    assert desk.heard["b"].reason == "length"


def test_a_voice_computed_with_others_is_kept_for_those_to_come(desk: Desk) -> None:
    """Once, if several have it; and where there is no room for it, that is no matter."""
    for name, length in (("a", 40), ("b", 45)):
        desk.submit(name, said(desk, "Yes.", length), prefix=PREFIX)
    desk.ticks()
    assert len(desk.worker._prefixes) == 1
    (kept,) = desk.worker._prefixes.values()
    assert kept.length == PREFIX
    third = desk.submit("c", said(desk, "Yes.", 50), prefix=PREFIX)
    desk.ticks()
    assert third.timings["prefilled"] == 50 - PREFIX


def test_a_voice_that_there_is_no_room_for_is_not_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise EngineBusyError("full")

    monkeypatch.setattr(PagedPool, "copy", full)
    desk.submit("a", said(desk, "Yes.", 40), prefix=PREFIX)
    desk.ticks(2)
    assert not desk.worker._prefixes
    assert desk.worker.pool.slots == 1
    desk.ticks(GREEDY.max_new_tokens)
    assert desk.heard["a"].reason == "length"
