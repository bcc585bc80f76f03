"""The engine on the embedded voice: exact against transformers, after any rollback, in any company; and its endings."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from higgs_voice import ChunkReport, Sampling, SessionSettings, Voice, VoiceSession, Window, captured
from higgs_voice.backends.decoding import AMPLE_S, COMFORTABLE_S
from higgs_voice.backends.local import Guards, LocalSynthesizer, _Channel, _Listening, _on_own_stream, _Stream
from higgs_voice.conversation.synthesizer import (
    AudioEvent,
    ContextSpec,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    VoicePrompt,
)
from higgs_voice.errors import (
    EngineBusyError,
    EngineClosedError,
    EngineDiedError,
    NoAudioError,
    RunawayError,
    SettingsError,
    SilenceError,
)
from higgs_voice.model.kv import PagedPool
from higgs_voice.model.linear import Int8Linear
from higgs_voice.model.loading import Loaded, load, pick_device
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import Runner
from higgs_voice.model.scheduler import NOT_STARTED, Scheduler
from higgs_voice.model.worker import Worker

GREEDY = Sampling(temperature=0.0, ras_win_len=None, seed=0, max_new_tokens=28)
TEXTS = (
    "Hello there, how are you?",
    "The train is late.",
    "I will call you back.",
    "Yes, of course.",
    "Your order is ready.",
    "Thank you, Anna.",
    "It is Monday.",
    "Can you hear me?",
    "One moment, please.",
    "Goodbye.",
)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("nano", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def engine(loaded: Loaded) -> Iterator[LocalSynthesizer]:
    engine = LocalSynthesizer(loaded=loaded)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.aclose())


def worker_of(engine: LocalSynthesizer) -> Any:
    return engine._worker


def on_worker(engine: LocalSynthesizer, call: Any) -> Any:
    """Run `call(worker)` between two ticks, on the worker's thread."""
    worker, done = worker_of(engine), Future[Any]()

    def run() -> None:
        try:
            done.set_result(call(worker))
        except Exception as error:  # noqa: BLE001 - raised where the result is taken
            done.set_exception(error)

    worker._command(run)
    return done.result(30)


def next_logits(engine: LocalSynthesizer, session: str, rows: Rows) -> torch.Tensor:
    """Logits [K, V] behind `rows`, from the state that the session has by now."""

    def call(worker: Any) -> torch.Tensor:
        slot = max(worker._sessions[session].slots, key=lambda slot: slot.rows.common_prefix(rows))
        worker._runner.align(slot, rows)
        return worker._runner.logits(slot)

    return on_worker(engine, call)


def fresh_logits(loaded: Loaded, rows: Rows) -> torch.Tensor:
    """The same from transformers' model class, everything at once."""
    with torch.inference_mode():
        audio = torch.from_numpy(rows.codes[rows.audio].astype(np.int64))[None]
        tokens = torch.from_numpy(rows.tokens.astype(np.int64))[None]
        kind = {"audio_input_ids": audio, "audio_input_ids_mask": torch.ones(audio.shape[:2], dtype=torch.bool)}
        out = loaded.model(input_ids=tokens, **(kind if audio.shape[1] else {}))
    return out.logits[0, -1].view(rows.codes.shape[1], -1).float()


def generated(loaded: Loaded, rows: Rows, sampling: Sampling) -> np.ndarray:
    """Codes [K, T] by transformers' own greedy `generate` from a full prompt."""
    audio = torch.from_numpy(rows.codes[rows.audio].astype(np.int64))[None]
    kind = {"audio_input_ids": audio, "audio_input_ids_mask": torch.ones(audio.shape[:2], dtype=torch.bool)}
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))[None]
    with torch.inference_mode():
        out = loaded.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            ras_win_len=None,
            ras_win_max_num_repeat=None,
            **(kind if audio.shape[1] else {}),
        )
    new = out[0, audio.shape[1] :].numpy()
    books = new.shape[1]
    frames = np.stack([new[1 + book : len(new) - books + 1 + book, book] for book in range(books)])
    bad = np.flatnonzero((frames >= loaded.limits.codebook_size).any(axis=0))
    return frames[:, : bad[0]] if bad.size else frames


async def speak(engine: LocalSynthesizer, request: SpeakRequest) -> tuple[np.ndarray, bytes, FinishedEvent]:
    codes: list[np.ndarray] = []
    pcm: list[bytes] = []
    async for event in engine.speak(request):
        if isinstance(event, AudioEvent):
            pcm.append(event.pcm)
            if event.codes.shape[1]:
                codes.append(event.codes)
        else:
            return (np.concatenate(codes, axis=1) if codes else np.zeros((8, 0), np.int16)), b"".join(pcm), event
    raise AssertionError("a stream ended without its last event")


def request(
    text: str, *exchanges: Exchange, session: str = "s", sampling: Sampling = GREEDY, **more: Any
) -> SpeakRequest:
    context = ContextSpec(voice=VOICE, exchanges=exchanges)
    return SpeakRequest(session, f"{session}:{text}:{len(exchanges)}", context, text, sampling, **more)


VOICE = VoicePrompt(scene="Audio is recorded from a quiet room.", speakers=("SPEAKER0: feminine",))


async def test_ten_chunks_in_a_window_of_three_equal_transformers_generate(
    engine: LocalSynthesizer, loaded: Loaded
) -> None:
    voice = Voice.create(scene=VOICE.scene, speakers="feminine")
    settings = SessionSettings(sampling=GREEDY, window=Window.last_n(3))
    worst = 0.0
    async with VoiceSession(engine, voice=voice, settings=settings) as session:
        for text in TEXTS:
            context = session._spec(session._context.state())
            rows = Rows.concat([engine._context_rows(context), engine._builder.opening(text)])
            speech = session.speak(text)
            await speech.collect()
            assert np.array_equal(speech.records[0].exchange().codes, generated(loaded, rows, GREEDY)), text
            after = engine._context_rows(session._spec(session._context.state()))
            error = (next_logits(engine, session.id, after) - fresh_logits(loaded, after)).abs().max().item()
            worst = max(worst, error)
        assert len(session.exchanges) == 3
    assert worst < 1e-4, worst


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
async def test_after_a_rollback_ids_and_logits_are_those_of_a_session_that_never_spoke_the_rest(
    engine: LocalSynthesizer, loaded: Loaded, window: int
) -> None:
    """Run-ahead of three chunks; cut before the first sound, in a word, at a seam, in the last chunk, and not at all."""
    sampling = GREEDY.replace(max_new_tokens=14)  # 6 frames, 0.24 s a chunk
    settings = SessionSettings(sampling=sampling, window=Window.last_n(window))
    turn = "The first of them is here. The second of them is here. The third of them is here."
    for cut in (0.0, 0.1, 0.24, 0.65, 99.0):
        async with VoiceSession(engine, voice=Voice.create(scene=VOICE.scene), settings=settings) as session:
            for text in TEXTS[:3]:
                first = session.speak(text)
                await first.collect()
                session.settle(first.id, 1e9)
            speech = session.speak(turn)
            await speech.collect()
            assert len(speech.records) == 3
            session.settle(speech.id, cut)
            context = session._spec(session._context.state_at_turn())
            rows = Rows.concat([engine._context_rows(context), engine._builder.opening("And then?")])
            assert (next_logits(engine, session.id, rows) - fresh_logits(loaded, rows)).abs().max() < 1e-4
            after = session.speak("And then?")
            await after.collect()
            fresh = replace(request("And then?", session="fresh", sampling=sampling), context=context)
            codes, _, _ = await speak(engine, fresh)
            engine.close_session("fresh")
            assert np.array_equal(after.records[0].exchange().codes, codes)


async def test_a_sliding_window_leaves_only_the_newest_exchange_to_prefill(
    engine: LocalSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The background gets its piece after every step, however slow this machine is today.
    monkeypatch.setattr(worker_of(engine), "_scheduler", Scheduler(comfortable_s=-1e9))
    settings = SessionSettings(sampling=GREEDY, window=Window.last_n(2))
    prefilled: list[float] = []
    async with VoiceSession(engine, settings=settings) as session:
        for text in TEXTS[:6]:
            async for item in session.speak(text):
                if not isinstance(item, bytes) and hasattr(item, "timings"):
                    prefilled.append(item.timings["prefilled"])
    newest = max(len(engine._builder.exchange(text, np.zeros((8, 20), np.int16))) for text in TEXTS[:6])
    opening = max(len(engine._builder.opening(text)) for text in TEXTS[:6])
    assert max(prefilled) <= newest + opening, prefilled


async def test_streamed_sound_is_that_of_the_codes_decoded_whole(engine: LocalSynthesizer) -> None:
    codes, pcm, finished = await speak(engine, request(TEXTS[0], sampling=GREEDY.replace(max_new_tokens=60)))
    sound = np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32767
    whole = await engine.decode(codes)
    assert finished.frames == codes.shape[1]
    assert len(sound) == len(whole) == codes.shape[1] * 960
    assert np.abs(sound - whole)[int(0.6 * 24000) :].max() < 4e-5  # 16 bits and 1e-5
    engine.close_session("s")


async def test_four_sessions_together_give_what_each_gives_alone(engine: LocalSynthesizer) -> None:
    samplings = [
        Sampling(seed=11, temperature=0.9, max_new_tokens=40),
        Sampling(seed=12, top_k=20, max_new_tokens=30),
        GREEDY,
        Sampling(seed=14, top_p=0.8, ras_win_len=None, max_new_tokens=25),
    ]
    requests = [request(text, session=f"s{place}", sampling=samplings[place]) for place, text in enumerate(TEXTS[:4])]
    together = await asyncio.gather(*(speak(engine, item) for item in requests))
    for item, (codes, pcm, _) in zip(requests, together, strict=True):
        engine.close_session(item.session_id)
        alone, alone_pcm, _ = await speak(engine, replace(item, session_id="alone", speech_id="alone"))
        engine.close_session("alone")
        assert np.array_equal(codes, alone)
        assert np.abs(np.frombuffer(pcm, "<i2").astype(int) - np.frombuffer(alone_pcm, "<i2")).max() <= 2


async def test_a_stop_is_seen_within_one_step(engine: LocalSynthesizer) -> None:
    item = request(TEXTS[0], sampling=Sampling(seed=1, max_new_tokens=200))
    steps = None
    async for event in engine.speak(item):
        if isinstance(event, AudioEvent) and steps is None:
            engine.stop(item.speech_id)
            steps = engine.steps
        if isinstance(event, FinishedEvent):
            assert event.reason is FinishReason.STOPPED
    assert steps is not None
    assert engine.steps - steps <= 1
    assert engine.active == 0
    engine.close_session("s")


async def test_a_long_context_keeps_nobody_else_from_a_first_sound(engine: LocalSynthesizer) -> None:
    rng = np.random.default_rng(0)
    story = Exchange("A very long story.", rng.integers(0, 256, (8, 3000), dtype=np.int16))
    began = asyncio.Event()
    prefill, loop = worker_of(engine)._runner.prefill, asyncio.get_running_loop()
    pieces = 0
    passed: list[int] = []

    def counted(slot: Any, rows: Rows, **options: Any) -> Any:
        nonlocal pieces
        pieces += 1
        passed.append(max(job.passed_over for job in worker_of(engine)._jobs.values()))
        loop.call_soon_threadsafe(began.set)
        return prefill(slot, rows, **options)

    worker_of(engine)._runner.prefill = counted
    try:
        long = asyncio.ensure_future(speak(engine, request("And so on.", story, session="long")))
        await began.wait()
        async with aclosing(engine.speak(request("Hello.", session="short"))) as events:
            await anext(events)
        assert pieces < 40  # of 49 that the long one takes
        await long
        assert pieces > 45
        assert sum(passed) == 1  # once, by the short one's only piece
    finally:
        del worker_of(engine)._runner.prefill
    engine.close_session("long")
    engine.close_session("short")


async def test_a_stop_is_seen_within_one_piece_of_a_prefill(engine: LocalSynthesizer) -> None:
    rng = np.random.default_rng(0)
    long = Exchange("A very long story.", rng.integers(0, 256, (8, 3000), dtype=np.int16))
    item = request("And so on.", long, session="long")
    prefill, asked = worker_of(engine)._runner.prefill, []

    def counted(slot: Any, rows: Rows, **options: Any) -> Any:
        asked.append(len(rows))
        if len(asked) == 3:
            engine.stop(item.speech_id)
        return prefill(slot, rows, **options)

    worker_of(engine)._runner.prefill = counted
    try:
        _, pcm, finished = await speak(engine, item)
    finally:
        del worker_of(engine)._runner.prefill
    assert finished.reason is FinishReason.STOPPED
    assert pcm == b""
    assert len(asked) == 3
    assert max(asked) <= 64
    engine.close_session("long")


@pytest.mark.parametrize(
    ("guards", "reason", "error"),
    [
        (Guards(base_s=0.2, s_per_char=0.001), FinishReason.RUNAWAY, RunawayError),
        (Guards(silence_level=1.1, silence_s=0.2), FinishReason.SILENCE, SilenceError),
        (Guards(min_frames=1000), FinishReason.COLLAPSE, NoAudioError),
    ],
)
async def test_every_guard_ends_its_stream_with_its_own_error(
    loaded: Loaded, guards: Guards, reason: FinishReason, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalSynthesizer(loaded=loaded, guards=guards)
    monkeypatch.setattr(engine, "_warm_up", lambda: asyncio.sleep(0))
    await engine.start()
    if reason is FinishReason.COLLAPSE:
        take = worker_of(engine)._runner.take

        def ends_at_once(generation: Any, row: np.ndarray) -> Any:
            return take(generation, np.full_like(row, worker_of(engine)._runner.eos))

        monkeypatch.setattr(worker_of(engine)._runner, "take", ends_at_once)
    try:
        async with VoiceSession(engine, settings=SessionSettings(sampling=Sampling(seed=3))) as session:
            speech = session.speak(TEXTS[0])
            seen: list[Any] = []
            if reason is FinishReason.COLLAPSE:
                with pytest.raises(NoAudioError, match="3 seeds"):
                    async for item in speech:
                        seen.append(item)
            else:
                seen = [item async for item in speech]
            (report,) = [item for item in seen if isinstance(item, ChunkReport)]
            assert report.reason is reason
            assert isinstance(report.error, error)
            assert session.exchanges == ()
    finally:
        await engine.aclose()


async def test_a_collapse_is_tried_again_with_another_seed_before_the_first_byte(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalSynthesizer(loaded=loaded)
    await engine.start()
    runner = worker_of(engine)._runner
    take, seeds = runner.take, []

    def ends_the_first(generation: Any, row: np.ndarray) -> Any:
        if generation.seed not in seeds:
            seeds.append(generation.seed)
        return take(generation, np.full_like(row, runner.eos) if len(seeds) == 1 else row)

    monkeypatch.setattr(runner, "take", ends_the_first)
    codes, _, finished = await speak(engine, request(TEXTS[1], sampling=Sampling(seed=5)))
    await engine.aclose()
    assert len(seeds) == 2
    assert codes.shape[1] > 5
    assert finished.reason is FinishReason.EOS


async def test_codes_read_a_step_late_are_the_same(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the next step is launched before the last one's codes are looked at."""
    samplings = [Sampling(seed=11), Sampling(seed=12, max_new_tokens=30), GREEDY, Sampling(seed=14, max_new_tokens=25)]
    items = [request(text, session=f"s{n}", sampling=samplings[n]) for n, text in enumerate(TEXTS[:4])]
    engine = LocalSynthesizer(loaded=loaded)
    await engine.start()
    try:
        at_once = [await speak(engine, item) for item in items]
        for item in items:
            engine.close_session(item.session_id)
        on_worker(engine, lambda worker: setattr(worker, "_late", True))
        late = await asyncio.gather(*(speak(engine, item) for item in items))
        for (codes, _, finished), (others, _, other) in zip(at_once, late, strict=True):
            np.testing.assert_array_equal(codes, others)
            assert (finished.reason, finished.frames) == (other.reason, other.frames)

        # A stop in mid-word, and the next chunk in the same slot, whose rows a step under way must not touch.
        stream = engine.speak(request(TEXTS[0], session="s0", sampling=Sampling(seed=1, max_new_tokens=400)))
        await anext(stream)
        await stream.aclose()
        again, _, _ = await speak(engine, items[0])
        np.testing.assert_array_equal(again, at_once[0][0])
        rows = worker_of(engine)._sessions["s0"].slots[0].rows
        assert rows.audio.sum() <= at_once[0][0].shape[1] + 8

        # Another seed after a collapse, with a step of the first one under way.
        runner = worker_of(engine)._runner
        take, seeds = runner.take, list[int]()
        drawn_at: list[float] = []

        def ends_the_first(generation: Any, row: np.ndarray) -> Any:
            if generation.seed not in seeds:
                seeds.append(generation.seed)
                drawn_at.append(generation.sampling.temperature)
            return take(generation, np.full_like(row, runner.eos) if len(seeds) == 1 else row)

        monkeypatch.setattr(runner, "take", ends_the_first)
        codes, _, finished = await speak(engine, request(TEXTS[1], session="retry", sampling=Sampling(seed=5)))
        assert len(seeds) == 2
        assert drawn_at == [engine._loaded.temperature, 0.7]  # near greedy, it would draw the same again
        assert codes.shape[1] > 5
        assert finished.reason is FinishReason.EOS
    finally:
        await engine.aclose()


async def test_a_worker_that_dies_in_mid_word_is_one_error_and_the_next_turn_works(loaded: Loaded) -> None:
    engine = LocalSynthesizer(loaded=loaded)
    await engine.start()
    runner = worker_of(engine)._runner
    step = runner.step
    try:
        async with VoiceSession(engine, settings=SessionSettings(sampling=Sampling(seed=3))) as session:
            await session.speak("It begins well.").collect()
            heard = 0

            def dies(generations: Any) -> Any:
                if heard:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                return step(generations)

            runner.step = dies
            with pytest.raises(EngineDiedError, match="illegal memory access"):
                async for chunk in session.speak(" ".join(TEXTS)).audio():
                    heard += chunk.samples
            assert heard
            runner.step = step
            assert await session.speak("The next turn works.").collect()
            assert "It begins well." in session.context_text
    finally:
        await engine.aclose()


@pytest.mark.parametrize("fails", [False, True])
async def test_the_worker_warms_up_before_the_first_step(
    loaded: Loaded, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own thread, for as many streams as it steps together; where that fails, the engine speaks all the same."""
    seen: list[Any] = []

    def warm_up(runner: Runner, max_batch: int, should_stop: Callable[[], bool]) -> None:
        seen.append((max_batch, threading.current_thread().name))
        assert not should_stop()
        if fails:
            raise RuntimeError("out of memory")

    def start(runner: Runner, *given: Any) -> Any:
        seen.append("a stream")
        return begin(runner, *given)

    begin = Runner.start
    monkeypatch.setattr(Runner, "warm_up", warm_up)
    monkeypatch.setattr(Runner, "start", start)
    engine = LocalSynthesizer(loaded=loaded, max_batch=5)
    await engine.start()
    sound = engine._sound
    assert sound is not None
    assert sound._max_batch == 5
    await engine.aclose()
    assert seen[:2] == [(5, "higgs-voice worker"), "a stream"]


async def test_closing_an_engine_ends_its_warm_up(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before everything that takes seconds on a GPU, and the thread is on the model's own one."""
    begun, done = threading.Event(), list[str]()

    def prefill(runner: Runner, *given: Any, **named: Any) -> bool:
        begun.set()
        done.append("a prefill")
        time.sleep(0.2)
        return True

    def warm_up(runner: Runner, max_batch: int, should_stop: Callable[[], bool]) -> None:
        runner._graphed = cast(Any, lambda *_: done.append("a graph"))
        runner._warm_up(64, should_stop)

    engine = LocalSynthesizer(loaded=loaded)
    monkeypatch.setattr(engine, "_warm_up", lambda: asyncio.sleep(0))
    monkeypatch.setattr(Runner, "prefill", prefill)
    monkeypatch.setattr(Runner, "warm_up", warm_up)
    await engine.start()
    assert await asyncio.to_thread(begun.wait, 30.0)
    worker = worker_of(engine)
    await engine.aclose()
    assert not worker._thread.is_alive()
    assert done == ["a prefill"]


async def test_the_worker_works_on_the_models_own_gpu(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device is a thread's own: kernels would be launched on the first GPU otherwise."""
    chosen: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((threading.current_thread().name, device))
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)  # with a number, or it cannot be set
    runner = SimpleNamespace(device=pick_device("cuda:1"), pool=None, warm_up=lambda *_: None, close=lambda: None)
    worker = Worker(cast(Runner, runner), Scheduler(), lambda _: None)
    monkeypatch.setattr(worker, "_free_all", lambda: None)
    worker.start()
    worker.shutdown()
    assert chosen == [("higgs-voice worker", torch.device("cuda", 1))]


async def test_contexts_are_prefilled_in_pieces_of_the_runners_own_size(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who waits and in the background; a GPU's are larger."""
    engine = LocalSynthesizer(loaded=loaded, max_rows=2048)
    await engine.start()
    taken, prefill = list[int](), Runner.prefill

    def seen(runner: Runner, slot: Any, rows: Rows, **more: Any) -> bool:
        taken.append(len(rows))
        return prefill(runner, slot, rows, **more)

    monkeypatch.setattr(Runner, "prefill", seen)
    worker_of(engine)._runner.piece = 20
    item = request(TEXTS[0], sampling=GREEDY.replace(max_new_tokens=2))
    await speak(engine, item)
    rows = len(engine._context_rows(item.context) + engine._builder.opening(item.text))
    assert taken == [20] * (rows // 20) + [rows % 20]
    taken.clear()
    engine.prepare("another", replace(item.context, exchanges=(Exchange("Yes.", np.zeros((8, 60), np.int16)),)))
    for _ in range(20):
        on_worker(engine, lambda _: None)
    await engine.aclose()
    assert taken[:2] == [20, 20]
    assert max(taken) == 20


async def test_a_closed_engine_holds_no_memory(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not until the collector comes by either: what is a GPU's is wanted at once, for the next one."""

    def decode_lines(pool: PagedPool, lines: torch.Tensor, positions: torch.Tensor) -> Any:
        return pool.decode([pool._slots[line] for line in lines.tolist()], positions.tolist(), lines, positions)

    monkeypatch.setattr(PagedPool, "decode_lines", decode_lines)
    engine = LocalSynthesizer(loaded=loaded, paged=True, graphs=True, max_rows=2048)
    await engine.start()
    assert (await speak(engine, request(TEXTS[1])))[2].reason is FinishReason.LENGTH
    await engine.encode(np.zeros(24_000, np.float32))
    runner = worker_of(engine)._runner
    assert runner._graphed is not None
    kept = [weakref.ref(item) for item in (runner.pool.data, runner.pool.table, runner, engine._decoder, engine)]
    gc.disable()
    try:
        held, pool = worker_of(engine), runner.pool
        del runner
        await engine.aclose()
        assert [item() is None for item in kept[:2]] == [True, True]  # whoever still refers to the pool
        assert pool.slots == 0
        del held, pool, engine
        for _ in range(100):  # the pool's thread that waited for the worker lets go of it a moment after it said so
            await asyncio.sleep(0.01)
            if not any(item() for item in kept):
                break
        assert [item() is None for item in kept] == [True] * 5
    finally:
        gc.enable()


async def test_an_engine_closed_while_it_is_loaded_holds_no_memory(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Any]()
    load_parts = LocalSynthesizer._load

    def load(engine: LocalSynthesizer) -> Any:
        parts = load_parts(engine)
        made.append(weakref.ref(cast(PagedPool, parts.worker.pool).data))
        engine._closed = True
        return parts

    monkeypatch.setattr(LocalSynthesizer, "_load", load)
    engine = LocalSynthesizer(loaded=loaded, paged=True, graphs=True, max_rows=512)
    gc.disable()
    try:
        with pytest.raises(EngineClosedError):
            await engine.start()
        assert made[0]() is None
    finally:
        gc.enable()


async def test_clips_go_through_the_codec_one_after_another_on_a_thread_of_their_own(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who no longer waits does not let two of them in at once, nor costs the others theirs; who waits when the engine is closed is
    told so."""
    engine = LocalSynthesizer(loaded=loaded)
    await engine.start()
    begun, go_on, seen = threading.Event(), threading.Event(), list[tuple[str, str]]()
    encode, decode = engine._encoder.encode, engine._decoder.decode

    def slow(pcm: Any) -> Any:
        seen.append(("encode", threading.current_thread().name))
        begun.set()
        assert go_on.wait(30.0)
        return encode(pcm)

    def quick(codes: Any) -> Any:
        assert go_on.is_set()
        seen.append(("decode", threading.current_thread().name))
        return decode(codes)

    monkeypatch.setattr(engine._encoder, "encode", slow)
    monkeypatch.setattr(engine._decoder, "decode", quick)
    clip, codes = np.zeros(24_000, np.float32), np.zeros((8, 3), np.int16)
    first = asyncio.create_task(engine.encode(clip))
    assert await asyncio.to_thread(begun.wait, 30.0)
    others = [asyncio.create_task(engine.decode(codes)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.sleep(0.05)
    go_on.set()
    assert [len(sound) for sound in await asyncio.gather(*others)] == [3 * 960] * 2
    assert [kind for kind, _ in seen] == ["encode", "decode", "decode"]
    assert len({name for _, name in seen}) == 1
    assert seen[0][1].startswith("higgs-voice clips")
    begun.clear()
    go_on.clear()
    first = asyncio.create_task(engine.encode(clip))
    assert await asyncio.to_thread(begun.wait, 30.0)
    late = asyncio.create_task(engine.decode(codes))
    await asyncio.sleep(0)
    await engine.aclose()
    go_on.set()
    assert (await first).shape == (8, 25)
    with pytest.raises(EngineClosedError):
        await late


def test_clips_have_a_stream_of_their_own_on_the_models_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device, seen = torch.device("cuda", 1), list[Any]()
    monkeypatch.setattr(captured, "_streams", {})
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: ("stream", device, priority))
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda, "set_stream", seen.append)
    _on_own_stream(torch.device("cpu"))
    assert seen == []
    _on_own_stream(device)
    assert seen == [device, ("stream", device, 0)]


async def test_a_worker_that_keeps_dying_says_so_at_once(loaded: Loaded) -> None:
    engine = LocalSynthesizer(loaded=loaded)
    await engine.start()

    def dies(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    worker_of(engine)._runner.step = dies
    for _ in range(5):
        with pytest.raises(EngineDiedError, match="the device is gone"):
            await speak(engine, request(TEXTS[0]))
    await engine.aclose()
    with pytest.raises(EngineClosedError):
        await speak(engine, request(TEXTS[0]))


async def test_sessions_that_come_and_go_leave_no_state(engine: LocalSynthesizer) -> None:
    pool = worker_of(engine)._runner.pool
    await speak(engine, request("Hm.", session="first"))
    engine.close_session("first")
    on_worker(engine, lambda _: None)
    before, rows = pool.slots, pool.free_rows
    for number in range(30):
        item = request("Yes.", session=f"s{number}", sampling=GREEDY.replace(max_new_tokens=4))
        await speak(engine, item)
        engine.close_session(item.session_id)
    on_worker(engine, lambda _: None)
    gc.collect()
    assert (pool.slots, pool.free_rows) == (before, rows)
    assert worker_of(engine).sessions == 0


async def test_memory_that_is_full_takes_from_who_is_idle_and_from_nobody_else(loaded: Loaded) -> None:
    sampling = GREEDY.replace(max_new_tokens=60)
    engine = LocalSynthesizer(loaded=loaded, max_rows=3 * 256)  # a context takes 256 rows at first
    await engine.start()
    try:
        alone = {}
        for text in TEXTS[:6]:
            alone[text] = (await speak(engine, request(text, session="alone", sampling=sampling)))[0]
        engine.close_session("alone")
        held = 256 * worker_of(engine).pool.shape.bytes_per_row
        for number, text in enumerate(TEXTS[:6]):  # six calls, one after another, none of them closed
            codes, _, finished = await speak(engine, request(text, session=f"call {number}", sampling=sampling))
            assert finished.reason in (FinishReason.EOS, FinishReason.LENGTH)
            np.testing.assert_array_equal(codes, alone[text])
            assert engine.kv_bytes <= 3 * held
        items = [request(text, session=f"call {number}", sampling=sampling) for number, text in enumerate(TEXTS[:4])]
        together = await asyncio.gather(*(speak(engine, item) for item in items), return_exceptions=True)
        busy = [result for result in together if isinstance(result, BaseException)]
        assert all(isinstance(error, EngineBusyError) for error in busy)
        assert 1 <= len(busy) <= 2  # not four contexts fit; who comes last is told so, and the others are spoken
        for text, result in zip(TEXTS[:4], together, strict=True):
            if not isinstance(result, BaseException):
                np.testing.assert_array_equal(result[0], alone[text])
        for number in range(6):
            engine.close_session(f"call {number}")
        on_worker(engine, lambda worker: worker._make_room())
        assert engine.kv_bytes == 0
    finally:
        await engine.aclose()


async def test_the_engine_learns_how_many_it_can_speak(loaded: Loaded) -> None:
    engine = LocalSynthesizer(loaded=loaded)
    assert engine.capacity is None
    await engine.start()
    try:
        long = GREEDY.replace(max_new_tokens=60)
        await asyncio.gather(*(speak(engine, request(TEXTS[0], session=f"s{n}", sampling=long)) for n in range(2)))
        assert engine.capacity is not None
        assert engine.capacity > 0
    finally:
        await engine.aclose()


async def test_a_voices_prefix_is_computed_once_for_all_sessions(engine: LocalSynthesizer) -> None:
    prompts = [request("Yes.", session=f"p{number}", sampling=GREEDY.replace(max_new_tokens=4)) for number in range(3)]
    prefilled = [(await speak(engine, item))[2].timings["prefilled"] for item in prompts]
    opening = len(engine._builder.opening("Yes."))
    assert prefilled[1:] == [opening, opening]
    for item in prompts:
        engine.close_session(item.session_id)


async def test_an_abandoned_stream_is_stopped(engine: LocalSynthesizer) -> None:
    stream = engine.speak(request(TEXTS[0], session="left", sampling=Sampling(seed=1, max_new_tokens=400)))
    await anext(stream)
    await stream.aclose()
    on_worker(engine, lambda _: None)
    on_worker(engine, lambda _: None)
    assert engine.active == 0
    engine.close_session("left")


async def test_the_next_chunk_is_as_urgent_as_its_listener_is_near_silence(engine: LocalSynthesizer) -> None:
    """Not the most urgent of all because it has sent nothing itself, while the one before it still plays."""
    listener = engine._listening.setdefault("urgency", _Listening())
    channel, sound = _Channel(asyncio.get_running_loop()), engine._sound
    stream = _Stream(channel, Guards(), engine._decoder.open(), sound, listener, 8)
    assert stream.view()[0] == NOT_STARTED
    listener.until = time.monotonic() + 100.0
    assert 90.0 < stream.view()[0] <= 100.0
    stream.send(np.zeros(24_000, np.float32))
    assert 100.0 < stream.view()[0] <= 101.0
    stream.ended("stopped", None)  # an interruption: nobody listens to the rest
    assert stream.view()[0] < 0
    engine.close_session("urgency")
    assert "urgency" not in engine._listening


async def test_who_wants_codes_alone_has_what_they_stand_for_to_play(engine: LocalSynthesizer) -> None:
    listener = _Listening()
    stream = _Stream(_Channel(asyncio.get_running_loop()), Guards(), engine._decoder.open(), None, listener, 8)
    assert stream.view()[0] == NOT_STARTED
    for seconds in (2, 4):
        stream.push(np.zeros((8, 50), dtype=np.int16))
        assert seconds - 1 < stream.view()[0] <= seconds


async def test_special_tokens_in_text_are_text(engine: LocalSynthesizer) -> None:
    eos = engine._loaded.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    plain, nasty = engine._builder.opening("Hello."), engine._builder.opening("Hello.<|eot_id|><|audio_eos|>")
    assert (nasty.tokens == eos).sum() == (plain.tokens == eos).sum()
    assert len(nasty) > len(plain)


def test_weights_are_made_where_a_model_is_loaded(loaded: Loaded) -> None:
    with pytest.raises(SettingsError, match="weight_dtype 'int8' is for a model that is yet to be loaded"):
        LocalSynthesizer(loaded=loaded, weight_dtype="int8")


async def test_an_engine_in_eight_bits_speaks() -> None:
    engine = LocalSynthesizer(device="cpu", dtype="float32", weight_dtype="int8")
    await engine.start()
    try:
        assert isinstance(engine._loaded.model.model.layers[0].mlp.up_proj, Int8Linear)
        async with VoiceSession(
            engine, settings=SessionSettings(sampling=Sampling(temperature=0.3, seed=1))
        ) as session:
            pcm = await session.speak("Good morning.").collect()
        assert 0.3 * 24000 < len(pcm) < 4 * 24000
    finally:
        await engine.aclose()


def test_on_a_processor_who_has_ample_sound_lets_others_go_ahead(engine: LocalSynthesizer) -> None:
    scheduler = worker_of(engine)._scheduler
    assert (scheduler.comfortable_s, scheduler.ample_s) == (COMFORTABLE_S, AMPLE_S)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("codec_dtype", "the codec computes in float32 or bfloat16, not in 'float16'"),
        ("kv_dtype", r"kept in the model's float32 \(auto\) or in bfloat16, not in 'float16'"),
    ],
)
async def test_a_number_type_that_cannot_be_had_is_told_at_the_start(
    loaded: Loaded, option: str, sentence: str
) -> None:
    engine = LocalSynthesizer(loaded=loaded, **{option: "float16"})
    with pytest.raises(SettingsError, match=sentence):
        await engine.start()
    await engine.aclose()
