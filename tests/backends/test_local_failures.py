"""What one request does wrong, and a start that nobody waits for: the others' streams go on, every stream ends, and no thread stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from higgs_voice import Sampling, SessionSettings, VoiceSession
from higgs_voice.backends import local
from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.conversation.synthesizer import (
    AudioEvent,
    ContextSpec,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
)
from higgs_voice.errors import EngineBusyError, EngineClosedError, EngineDiedError, EngineError
from higgs_voice.model.loading import Loaded, load
from higgs_voice.model.prompt import Rows

GREEDY = Sampling(temperature=0.0, ras_win_len=None, seed=0, max_new_tokens=28)
POISON = 200
"""A code of which an exchange is made that the model here chokes on."""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("nano", device="cpu", dtype="float32")


@pytest_asyncio.fixture
async def engine(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[LocalSynthesizer]:
    engine = LocalSynthesizer(loaded=loaded)
    monkeypatch.setattr(engine, "_warm_up", lambda: asyncio.sleep(0))
    await engine.start()
    yield engine
    await engine.aclose()


def worker_of(engine: LocalSynthesizer) -> Any:
    return engine._worker


def on_worker(engine: LocalSynthesizer, call: Callable[[Any], Any]) -> Any:
    """Run `call(worker)` between two ticks, on the worker's thread."""
    worker, done = worker_of(engine), Future[Any]()
    worker._command(lambda: done.set_result(call(worker)))
    return done.result(30)


def request(text: str = "Hello there.", *exchanges: Exchange, session: str = "s", **sampling: Any) -> SpeakRequest:
    context = ContextSpec(exchanges=exchanges)
    return SpeakRequest(session, f"{session}/{text}", context, text, GREEDY.replace(**sampling))


async def speak(engine: LocalSynthesizer, asked: SpeakRequest) -> tuple[np.ndarray, FinishedEvent]:
    """Codes [8, n] and the last event."""
    codes: list[np.ndarray] = [np.zeros((8, 0), np.int16)]
    async with asyncio.timeout(60):
        async for event in engine.speak(asked):
            if isinstance(event, FinishedEvent):
                return np.concatenate(codes, axis=1), event
            codes.append(event.codes)
    raise AssertionError("a stream ended without its last event")


def poisoned() -> Exchange:
    return Exchange("It is poisoned.", np.full((8, 12), POISON, np.int16))


def chokes(engine: LocalSynthesizer, where: str, monkeypatch: pytest.MonkeyPatch) -> SpeakRequest:
    """A request that fails before its first step, and the engine in which it does."""
    runner = worker_of(engine)._runner
    slot_for, prefill, start = worker_of(engine)._slot_for, runner.prefill, runner.start

    def no_slot(session: Any, rows: Rows, *given: Any, **named: Any) -> Any:
        if (rows.codes == POISON).sum() > 8:
            raise RuntimeError("this one fails")
        return slot_for(session, rows, *given, **named)

    def no_prefill(slot: Any, rows: Rows, **named: Any) -> Any:
        if (rows.codes == POISON).sum() > 8:
            raise RuntimeError("this one fails")
        return prefill(slot, rows, **named)

    def no_start(slot: Any, sampling: Sampling, seed: int, *spoken: Any) -> Any:
        if seed == POISON:
            raise RuntimeError("this one fails")
        return start(slot, sampling, seed, *spoken)

    if where == "a slot":
        monkeypatch.setattr(worker_of(engine), "_slot_for", no_slot)
    else:
        monkeypatch.setattr(runner, "prefill", no_prefill)
        monkeypatch.setattr(runner, "start", no_start)
    return request("No.", *([] if where == "the start" else [poisoned()]), session="bad", seed=POISON)


@pytest.mark.parametrize("where", ["a slot", "a prefill", "the start"])
async def test_who_cannot_begin_fails_alone(
    engine: LocalSynthesizer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = request("This is a sentence of some length.", max_new_tokens=60)
    alone, _ = await speak(engine, good)
    bad = chokes(engine, where, monkeypatch)
    stream = engine.speak(replace(good, session_id="good"))
    codes = [event.codes for event in [await anext(stream)] if isinstance(event, AudioEvent)]
    for number in range(5):
        with pytest.raises(EngineError, match="could not begin this chunk: RuntimeError: this one fails") as failed:
            await speak(engine, replace(bad, speech_id=f"bad/{number}"))
        assert type(failed.value) is EngineError
        assert isinstance(failed.value.__cause__, RuntimeError)
    codes += [event.codes async for event in stream if isinstance(event, AudioEvent)]
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), alone)
    assert engine.failure is None
    assert worker_of(engine)._crashes == 0

    # The same session, and who waits behind one that fails.
    after = [replace(bad, speech_id="bad/5"), request(session="bad")]
    failed_again, (_, finished) = await asyncio.gather(*(speak(engine, item) for item in after), return_exceptions=True)
    assert isinstance(failed_again, EngineError)
    assert finished.frames > 3
    for session in ("s", "good", "bad"):
        engine.close_session(session)
    on_worker(engine, lambda worker: worker._prefixes.clear())
    assert worker_of(engine).sessions == 0


async def test_a_context_that_cannot_be_made_ready_harms_nobody(
    engine: LocalSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chokes(engine, "a prefill", monkeypatch)
    for number in range(5):
        engine.prepare(f"bad {number}", ContextSpec(exchanges=(poisoned(),)))
    _, finished = await speak(engine, request())
    assert finished.reason in (FinishReason.EOS, FinishReason.LENGTH)
    while any(on_worker(engine, lambda worker: [item.target for item in worker._sessions.values()])):
        await asyncio.sleep(0)
    assert worker_of(engine)._crashes == 0
    assert not on_worker(engine, lambda worker: worker._sessions["bad 0"].slots)


@pytest.mark.parametrize("full", [False, True])
async def test_an_engine_that_can_begin_nothing_is_dead_and_says_so(
    engine: LocalSynthesizer, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    runner = worker_of(engine)._runner
    monkeypatch.setattr(runner, "prefill", fails)
    if full:  # then whose failure it is cannot be told, and it is not the others'
        monkeypatch.setattr(runner, "check", lambda: (_ for _ in ()).throw(EngineBusyError("full")))
    for number in range(5):
        assert (engine.failure is None) == (full or number < 3)
        with pytest.raises(EngineError, match="device-side assert") as failed:
            await speak(engine, request())
        assert isinstance(failed.value, EngineDiedError) != full
    assert (engine.failure is None) == full
    if engine.failure is not None:
        assert "device-side assert" in str(engine.failure)


@pytest.mark.parametrize("late", [False, True])
async def test_a_chunk_of_one_row_ends(engine: LocalSynthesizer, late: bool) -> None:
    """Its only row is the all-BOS one, which takes no step."""
    on_worker(engine, lambda worker: setattr(worker, "_late", late))
    short = [request(f"{number}", max_new_tokens=1) for number in range(3)]
    ended = await asyncio.gather(*(speak(engine, item) for item in [*short, request("Two.", max_new_tokens=2)]))
    assert [(finished.reason, finished.frames) for _, finished in ended] == [(FinishReason.LENGTH, 0)] * 4
    codes, _ = await speak(engine, replace(request("Codes.", max_new_tokens=1), pcm=False))
    assert codes.shape == (8, 0)
    _, finished = await speak(engine, request())
    assert finished.frames > 3
    assert engine.active == 0


async def test_a_session_whose_chunks_may_take_one_row_goes_on(engine: LocalSynthesizer) -> None:
    async with VoiceSession(engine, settings=SessionSettings(sampling=Sampling(max_new_tokens=1))) as session:
        async with asyncio.timeout(60):
            for text in ("Hello.", "Hello again."):
                assert not len(await session.speak(text).collect())


async def test_a_context_that_leaves_no_room_is_an_error_and_one_that_leaves_little_ends(
    engine: LocalSynthesizer,
) -> None:
    item = request("Hello.", Exchange("It was here.", np.full((8, 40), 7, np.int16)), max_new_tokens=200)
    context = engine._context_rows(item.context)
    rows = len(context) + len(engine._builder.opening(item.text))
    info = engine.info
    for room in (-100, 0, 1, 10):
        engine._info = replace(info, max_positions=rows + room)
        sentence = f"the context and the text take {rows} of the model's {rows + room} rows"
        with pytest.raises(EngineError, match=sentence):
            await speak(engine, item)
    assert engine.active == 0
    engine._info = replace(info, max_positions=rows + 11)  # eight rows of delay and three frames
    codes, finished = await speak(engine, item)
    assert (finished.reason, finished.frames, codes.shape[1]) == (FinishReason.LENGTH, 3, 3)

    # What no chunk can follow is not made ready.
    engine._info = replace(info, max_positions=len(context))
    engine.prepare("never", item.context)
    assert not on_worker(engine, lambda worker: "never" in worker._sessions)


# The start


class _Gate:
    """Holds the loading of a model until it is opened."""

    def __init__(self, loaded: Loaded) -> None:
        self.begun, self.open, self.loads = threading.Event(), threading.Event(), 0
        self._loaded = loaded
        self._before = set(threading.enumerate())

    def load(self, *_: Any, **__: Any) -> Loaded:
        self.loads += 1
        self.begun.set()
        assert self.open.wait(60)
        return self._loaded

    def threads(self) -> list[str]:
        """The engine's, that were not there before."""
        mine = {thread for thread in threading.enumerate() if thread.name.startswith("higgs-voice")}
        return sorted(thread.name for thread in mine - self._before)


@pytest.fixture
def gate(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> _Gate:
    gate = _Gate(loaded)
    monkeypatch.setattr(local, "load", gate.load)
    return gate


async def test_a_start_that_was_cancelled_is_the_next_ones(gate: _Gate) -> None:
    engine = LocalSynthesizer()
    first = asyncio.create_task(engine.start())
    assert await asyncio.to_thread(gate.begun.wait, 60)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    others = [asyncio.create_task(engine.start()) for _ in range(2)]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(*others)
    await engine.start()
    assert gate.loads == 1
    assert gate.threads() == ["higgs-voice codec", "higgs-voice worker"]
    _, finished = await speak(engine, request())
    assert finished.frames > 3
    await engine.aclose()
    assert gate.threads() == []


async def test_an_engine_that_is_closed_while_it_loads_leaves_nothing(gate: _Gate) -> None:
    engine = LocalSynthesizer()
    start = asyncio.create_task(engine.start())
    assert await asyncio.to_thread(gate.begun.wait, 60)
    await engine.aclose()
    assert not start.done()
    gate.open.set()
    with pytest.raises(EngineClosedError, match="this engine is closed; create another one"):
        await start
    with pytest.raises(EngineClosedError, match="this engine is closed; create another one"):
        await engine.start()
    assert gate.threads() == []
    assert engine._loaded is None
    await engine.aclose()


async def test_an_engine_that_is_closed_while_it_warms_up_leaves_nothing(
    gate: _Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    engine, warm_up = LocalSynthesizer(), asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> None:
        warm_up.set()
        await go_on.wait()

    monkeypatch.setattr(engine, "_warm_up", slow)
    start = asyncio.create_task(engine.start())
    await warm_up.wait()
    await engine.aclose()
    go_on.set()
    with pytest.raises(EngineClosedError, match="this engine is closed"):
        await start
    assert gate.threads() == []


async def test_a_start_that_fails_leaves_nothing_and_may_be_tried_again(
    gate: _Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    engine = LocalSynthesizer()

    async def fails() -> None:
        raise EngineDiedError("it did not warm up")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_warm_up", fails)
        for _ in range(2):
            with pytest.raises(EngineDiedError, match="it did not warm up"):
                await engine.start()
            assert gate.threads() == []
    await engine.start()
    assert (await speak(engine, request()))[1].frames > 3
    await engine.aclose()
    assert gate.threads() == []


def test_an_event_loop_that_ends_while_a_model_loads_leaves_nothing(gate: _Gate) -> None:
    engine = LocalSynthesizer()

    async def ends_early() -> None:
        start = asyncio.create_task(engine.start())
        assert await asyncio.to_thread(gate.begun.wait, 60)
        start.cancel()
        threading.Timer(0.05, gate.open.set).start()  # the loop waits for the thread that loads

    asyncio.run(ends_early())
    assert gate.threads() == []

    async def another() -> FinishedEvent:
        await engine.start()
        _, finished = await speak(engine, request())
        await engine.aclose()
        return finished

    assert asyncio.run(another()).frames > 3
    assert gate.threads() == []
