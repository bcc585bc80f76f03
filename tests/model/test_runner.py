"""The engine's core against transformers' `generate`, and its own promises."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.config import Sampling
from higgs_voice.errors import EngineBusyError, SettingsError
from higgs_voice.model import linear
from higgs_voice.model.delay import revert_delay
from higgs_voice.model.kv import KvSlot, pick_kv_dtype
from higgs_voice.model.loading import Loaded, load
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import Generation, Runner
from higgs_voice.model.sampling import BLOCK
from tests.model.oracle import Oracle

GREEDY = Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=24)
SYSTEM = "Generate audio following instruction."
WORDS = ["Yes.", "Hello there.", "No way!", "Go on.", "It is.", "Why not?", "Good.", "Is it?", "Not yet.", "Bye now."]


@pytest.fixture
def slot(runner: Runner) -> Iterator[KvSlot]:
    slot = runner.pool.acquire()
    yield slot
    slot.release()


@pytest.fixture(scope="module", params=["contiguous", "paged"])
def either(request: pytest.FixtureRequest, nano: Loaded) -> Runner:
    """A runner over each kind of pool."""
    return Runner(nano, max_rows=8192, paged=request.param == "paged")


def speak(runner: Runner, generation: Generation) -> np.ndarray:
    """Step to the end; all rows [n, K], the all-BOS row first."""
    rows = [generation.row]
    while not (generation.finished or generation.exhausted):
        result = runner.step([generation])[0]
        assert result.row is not None
        rows.append(result.row)
    return np.array(rows)


def test_ten_chunks_with_a_window_of_three_are_transformers(runner: Runner, oracle: Oracle, slot: KvSlot) -> None:
    """Ours reuses keys and values by the longest common prefix; transformers prefills every prompt from nothing."""
    prefix = runner.prompts.prefix(SYSTEM, "A quiet room.", ("SPEAKER0: warm",))
    window: list[Rows] = []
    reused = 0
    for text in WORDS:
        context = Rows.concat([prefix, *window])
        alignment = runner.align(slot, context + runner.prompts.opening(text))
        reused += alignment.reused
        expected = oracle.generate(slot.rows, max_new_tokens=GREEDY.max_new_tokens)
        rows = speak(runner, runner.start(slot, GREEDY, seed=0))
        np.testing.assert_array_equal(rows, expected)
        codes = revert_delay(rows, bos=runner.bos, eos=runner.eos)
        window = [*window, runner.prompts.exchange(text, codes)][-3:]
        whole = context + window[-1]
        assert runner.align(slot, whole).complete
        torch.testing.assert_close(runner.logits(slot), oracle.logits(whole), atol=1e-4, rtol=0)
    assert reused > 500


def test_the_next_chunk_prefills_only_what_is_new(runner: Runner, slot: KvSlot) -> None:
    context = runner.prompts.prefix(SYSTEM) + runner.prompts.opening("Hello there.")
    runner.align(slot, context)
    rows = speak(runner, runner.start(slot, Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=150), seed=0))
    assert (rows[-1] == runner.eos).all()
    codes = revert_delay(rows, bos=runner.bos, eos=runner.eos)
    whole = runner.prompts.prefix(SYSTEM) + runner.prompts.exchange("Hello there.", codes)
    # The staircase of EOS and the end of the message at most.
    assert runner.align(slot, whole).prefilled <= runner.num_codebooks + 3


@pytest.mark.parametrize("seed", range(4))
def test_a_rollback_anywhere_leaves_no_trace(either: Runner, codes: Any, seed: int) -> None:
    slot = either.pool.acquire()
    rng = np.random.default_rng(seed)
    prefix = either.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(20, seed=9))])
    exchanges = [either.prompts.exchange(WORDS[n], codes(int(rng.integers(1, 25)), seed=n)) for n in range(4)]
    either.align(slot, Rows.concat([prefix, *exchanges]))
    for _ in range(3):
        kept = codes(int(rng.integers(0, 12)), seed=int(rng.integers(9)))
        cut = Rows.concat([prefix, *exchanges[: rng.integers(0, 4)], either.prompts.exchange("cut.", kept)])
        if rng.random() < 0.5:  # somewhere inside, also within text
            slot.crop(int(rng.integers(1, slot.length)))
        either.align(slot, cut)
        fresh = either.pool.acquire()
        either.align(fresh, cut)
        assert slot.rows.common_prefix(fresh.rows) == slot.length == fresh.length
        torch.testing.assert_close(either.logits(slot), either.logits(fresh), atol=1e-4, rtol=0)
        fresh.release()
    slot.release()
    assert either.pool.free_rows == either.pool.max_rows


@pytest.mark.parametrize("seen_first", [True, False])
def test_a_shared_prefix_is_as_good_as_ones_own(either: Runner, codes: Any, seen_first: bool) -> None:
    slot = either.pool.acquire()
    prefix = either.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(40))])
    voice = either.pool.acquire()
    either.align(voice, prefix)
    slot.copy_from(voice, len(prefix))
    if seen_first:
        voice.release()
    opening = either.prompts.opening("Hello.")
    assert either.align(slot, prefix + opening).prefilled == len(opening)
    fresh = either.pool.acquire()
    either.align(fresh, prefix + opening)
    expected = either.logits(fresh)
    torch.testing.assert_close(either.logits(slot), expected, atol=1e-4, rtol=0)
    if not seen_first:  # what was written behind the shared part is not in the voice's own
        either.align(voice, prefix + either.prompts.opening("Quite another text."))
        torch.testing.assert_close(either.logits(slot), expected, atol=1e-4, rtol=0)
        voice.release()
    fresh.release()
    slot.release()
    assert either.pool.free_rows == either.pool.max_rows


FOUR = [
    (Sampling(max_new_tokens=30), 11, "Hello there.", 0),
    (GREEDY, 0, "No.", 9),
    (Sampling(temperature=1.1, top_k=20, ras_win_len=3, ras_win_max_num_repeat=1, max_new_tokens=21), 12, "Why?", 30),
    (Sampling(temperature=0.3, top_p=0.5, max_new_tokens=90), 13, "Yes, of course.", 3),
]


def begin(runner: Runner, index: int, codes: Any) -> Generation:
    sampling, seed, text, frames = FOUR[index]
    slot = runner.pool.acquire()
    context = runner.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(frames, seed=index))] if frames else ())
    runner.align(slot, context + runner.prompts.opening(text))
    return runner.start(slot, sampling, seed)


def test_four_together_speak_as_each_alone(runner: Runner, codes: Any) -> None:
    """Other contexts, settings, starts and ends: the same rows to the last bit of the logits' order."""
    alone: list[np.ndarray] = []
    for index in range(4):
        generation = begin(runner, index, codes)
        alone.append(speak(runner, generation))
        generation.slot.release()
    generations = [begin(runner, index, codes) for index in range(4)]
    together: list[list[np.ndarray]] = [[generation.row] for generation in generations]
    for tick in range(200):
        active = [
            generation
            for index, generation in enumerate(generations)
            if tick >= 3 * index and not (generation.finished or generation.exhausted)
        ]
        if not active and tick > 9:
            break
        if tick % 2:
            active.reverse()
        for result in runner.step(active):
            assert result.row is not None
            together[generations.index(result.generation)].append(result.row)
    for index in range(4):
        np.testing.assert_array_equal(np.array(together[index]), alone[index])
        generations[index].slot.release()


@pytest.mark.parametrize("packed", [True, False])
def test_logits_are_the_same_bits_in_every_company(
    nano: Loaded, codes: Any, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """In float32 on a CPU a row's sums do not depend on how many rows share the matrix product."""
    if not packed:
        monkeypatch.setattr(linear, "_pack", lambda weight: None)
    runner = Runner(nano, max_rows=4096)
    generations = [begin(runner, index, codes) for index in range(4)]

    def decode(which: list[int]) -> torch.Tensor:
        slots = [generations[index].slot for index in which]
        lines = runner.sampler.gather(torch.tensor([slot.index for slot in slots]))
        row, positions = runner.sampler.last(lines.index)
        return runner.forward.decode(
            row, positions, runner.pool.decode(slots, [slot.length for slot in slots], lines.index, positions)
        )

    for generation in generations:
        generation.slot.reserve(generation.slot.length + 1)
    whole = decode([0, 1, 2, 3])
    for which in ([0], [2], [1, 3], [3, 0, 1]):
        assert torch.equal(decode(which), whole[which])
    for generation in generations:
        generation.slot.release()


def test_seeds_repeat_and_differ(runner: Runner, codes: Any) -> None:
    def once(seed: int) -> list[list[int]]:
        slot = runner.pool.acquire()
        runner.align(slot, runner.prompts.prefix(SYSTEM) + runner.prompts.opening("Hello."))
        rows = speak(runner, runner.start(slot, Sampling(max_new_tokens=12), seed)).tolist()
        slot.release()
        return rows

    assert once(5) == once(5)
    assert once(5) != once(6)


def test_repetition_aware_sampling_looks_at_the_contexts_audio(runner: Runner, oracle: Oracle, slot: KvSlot) -> None:
    """transformers' window reaches back over the all-BOS row into the audio before it."""
    clip = np.full((8, 30), 17, dtype=np.int16)
    runner.align(slot, runner.prompts.prefix(SYSTEM, None, (), [("Clip.", clip)]) + runner.prompts.opening("Hello."))
    runner.start(slot, Sampling(ras_win_len=12), 0)
    window = runner.sampler.ints[slot.index, runner.sampler.history :].view(-1, 8)[-12:]
    codes = torch.from_numpy(slot.rows.codes[slot.rows.audio][-11:].astype(np.int64))
    assert torch.equal(window[:-1], codes.masked_fill(codes >= runner.bos, -1))
    assert (window[:-1] == 17).sum() > 20
    assert (window[-1] == -1).all()


def test_a_prefill_stops_within_a_piece(runner: Runner, slot: KvSlot, codes: Any) -> None:
    rows = runner.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(300))])
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    alignment = runner.align(slot, rows, should_stop=stop)
    assert (alignment.complete, alignment.prefilled, slot.length) == (False, 128, 128)
    assert runner.align(slot, rows).reused == 128
    fresh = runner.pool.acquire()
    runner.align(fresh, rows)
    torch.testing.assert_close(runner.logits(slot), runner.logits(fresh), atol=1e-4, rtol=0)
    fresh.release()


def test_frames_are_the_codes_of_the_rows(runner: Runner, slot: KvSlot) -> None:
    runner.align(slot, runner.prompts.prefix(SYSTEM) + runner.prompts.opening("Hello there."))
    generation = runner.start(slot, Sampling(max_new_tokens=40), 3)
    rows, frames = [generation.row], []
    while not (generation.finished or generation.exhausted):
        result = runner.step([generation])[0]
        assert result.row is not None
        rows.append(result.row)
        if result.frame is not None:
            frames.append(result.frame)
    codes = revert_delay(np.array(rows), bos=runner.bos, eos=runner.eos)
    assert generation.frames == len(frames) == codes.shape[1] > 5
    np.testing.assert_array_equal(np.array(frames).T, codes)
    np.testing.assert_array_equal(slot.rows.codes[slot.rows.audio], np.array(rows)[:-1])


@pytest.mark.parametrize("paged", [False, True])
def test_a_step_launched_before_the_last_one_is_read_draws_the_same(nano: Any, paged: bool) -> None:
    runner = Runner(nano, paged=paged, graphs=False, max_rows=2048)
    slots = [runner.pool.acquire() for _ in range(2)]
    texts = ("Hello.", "Your order is ready, and it is at the door.")
    samplings = (GREEDY.replace(max_new_tokens=14), Sampling(max_new_tokens=300))

    def begin() -> list[Generation]:
        for slot, text in zip(slots, texts, strict=True):
            runner.align(slot, runner.prompts.prefix(SYSTEM) + runner.prompts.opening(text))
        return [runner.start(slot, sampling, 7) for slot, sampling in zip(slots, samplings, strict=True)]

    alone = [speak(runner, generation) for generation in begin()]
    generations = begin()
    rows = [[generation.row] for generation in generations]
    under_way = deque([runner.launch(generations)])
    while under_way:
        going = [generation for generation in generations if generation.may_step]
        if going:  # past the first growth of the pool's storage, with a step under way
            under_way.append(runner.launch(going))
        for result in under_way.popleft().results():
            assert result.row is not None
            rows[generations.index(result.generation)].append(result.row)
    for ahead, expected in zip(rows, alone, strict=True):
        np.testing.assert_array_equal(np.array(ahead), expected)


def test_a_check_says_what_is_wrong_and_leaves_nothing(either: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    before = either.pool.slots, either.pool.free_rows
    either.check()

    def fails(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(either.forward, "prefill", fails)
    with pytest.raises(RuntimeError, match="the device is gone"):
        either.check()
    assert (either.pool.slots, either.pool.free_rows) == before


def test_full_memory_refuses_one_and_the_others_go_on(nano: Any, codes: Any) -> None:
    runner = Runner(nano, max_rows=524 + 256)
    long, short = runner.pool.acquire(), runner.pool.acquire()
    runner.align(short, runner.prompts.prefix(SYSTEM) + runner.prompts.opening("Hello."))
    rows = runner.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(480))]) + runner.prompts.opening("Hello.")
    runner.align(long, rows)
    one, two = runner.start(long, GREEDY, 0), runner.start(short, GREEDY, 0)
    errors = 0
    while two.produced < 24:
        for result in runner.step([one, two]):
            if result.error is not None:
                assert result.generation is one
                errors += 1
    assert errors > 5
    assert one.produced < two.produced
    with pytest.raises(EngineBusyError):
        runner.align(long, rows + rows)


def test_the_checkpoint_says_at_what_temperature_it_is_drawn(
    nano: Loaded, codes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody does; where it says nothing, it is the documented 0.7."""

    def rows(temperature: float | None) -> list[list[int]]:
        runner = Runner(nano, max_rows=1024)
        slot = runner.pool.acquire()
        runner.align(
            slot, runner.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(20))]) + runner.prompts.opening("No.")
        )
        generation = runner.start(slot, Sampling(temperature=temperature), 5)
        return [runner.step([generation])[0].row.tolist() for _ in range(8)]

    recommended, documented = rows(0.2), rows(0.7)
    assert nano.temperature == 0.2
    assert recommended != documented
    assert rows(None) == recommended
    monkeypatch.setattr(nano.model.generation_config, "temperature", None)
    assert rows(None) == documented
    assert rows(0.2) == recommended


def test_bfloat16_stays_near_float32(runner: Runner, slot: KvSlot, codes: Any) -> None:
    """Teacher-forced logits behind a context of several hundred rows."""
    half = Runner(load("nano", device="cpu", dtype="bfloat16"), max_rows=2048)
    rows = runner.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(200))]) + runner.prompts.exchange("No.", codes(20))
    runner.align(slot, rows)
    other = half.pool.acquire()
    half.align(other, rows)
    exact = runner.logits(slot)
    error = (half.logits(other) - exact).abs().max() / exact.std()
    print(f"bfloat16: largest error {error:.3f} standard deviations of the logits")
    assert error < 0.1


@pytest.mark.parametrize("paged", [False, True])
def test_keys_and_values_in_bfloat16_stay_near_float32(
    nano: Loaded, runner: Runner, slot: KvSlot, codes: Any, paged: bool
) -> None:
    """Half the bytes a row; teacher-forced logits behind several hundred rows, after a prefill and after a step."""
    half = Runner(nano, max_rows=2048, kv_dtype="bfloat16", paged=paged)
    assert 2 * half.pool.shape.bytes_per_row == runner.pool.shape.bytes_per_row
    other = half.pool.acquire()
    rows = runner.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(200))]) + runner.prompts.opening("No, it is not.")
    errors: list[float] = []
    said = np.random.default_rng(3).integers(0, 256, size=8)
    logits: list[torch.Tensor] = []
    for each, at in ((runner, slot), (half, other)):
        each.align(at, rows)
        start = each.logits(at)
        at.reserve(at.length + 1)
        lines = each.sampler.gather(torch.tensor([at.index]))
        position = torch.tensor([at.length])
        attend = each.pool.decode([at], [at.length], lines.index, position)
        step = each.forward.decode(torch.from_numpy(said)[None], position, attend)
        assert step.dtype == torch.float32
        logits += [start, step[0]]
    for one, two in zip(logits[:2], logits[2:], strict=True):
        errors.append(float((two - one).abs().max() / one.std()))
    assert all(0 < error < 0.05 for error in errors), errors


def test_four_with_keys_in_bfloat16_speak_as_each_alone(nano: Loaded, codes: Any) -> None:
    """Who shares the batch does not matter there either."""
    runner = Runner(nano, max_rows=4096, kv_dtype="bfloat16")
    generations = [begin(runner, index, codes) for index in range(3)]

    def decode(which: list[int]) -> torch.Tensor:
        slots = [generations[index].slot for index in which]
        lines = runner.sampler.gather(torch.tensor([slot.index for slot in slots]))
        row, positions = runner.sampler.last(lines.index)
        attend = runner.pool.decode(slots, [slot.length for slot in slots], lines.index, positions)
        return runner.forward.decode(row, positions, attend)

    for generation in generations:
        generation.slot.reserve(generation.slot.length + 1)
    whole = decode([0, 1, 2])
    for which in ([0], [2], [2, 0]):
        assert torch.equal(decode(which), whole[which])


@pytest.mark.parametrize(
    ("kind", "model", "device", "sentence"),
    [
        ("float16", torch.float32, "cpu", r"in the model's float32 \(auto\) or in bfloat16, not in 'float16'"),
        ("float32", torch.bfloat16, "cpu", r"in the model's bfloat16 \(auto\)"),
        ("bfloat16", torch.float32, "cuda", "load the model in bfloat16 instead"),
    ],
)
def test_keys_and_values_that_cannot_be_had_are_one_sentence(
    kind: str, model: torch.dtype, device: str, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        pick_kv_dtype(kind, model, torch.device(device))


@pytest.mark.parametrize("sampling", [GREEDY.replace(max_new_tokens=90), Sampling(max_new_tokens=90)])
@pytest.mark.parametrize("said", [1, 5, 7, 8, 9, 30, BLOCK, BLOCK + 6])
def test_behind_frames_of_another_generation_it_goes_on_as_that_one(
    either: Runner, codes: Any, said: int, sampling: Sampling
) -> None:
    """In float32 to the last code: the same row, repetitions, numbers and length."""
    opening = either.prompts.prefix(SYSTEM, None, (), [("Clip.", codes(30))]) + either.prompts.opening(
        "Well, your order is ready now, and it is waiting for you at the door of the shop."
    )
    slot = either.pool.acquire()
    try:
        either.align(slot, opening)
        whole = speak(either, either.start(slot, sampling, 3))
        frames = revert_delay(whole, bos=either.bos, eos=either.eos)
        assert frames.shape[1] > said
        spoken = frames[:, :said]
        either.align(slot, opening[:-2])  # it knows nothing of what it said
        either.align(slot, opening + either.prompts.begun(spoken))
        generation = either.start(slot, sampling, 3, spoken)
        new: list[np.ndarray] = []
        rows = [generation.row]
        while not (generation.finished or generation.exhausted):
            result = either.step([generation])[0]
            assert result.row is not None
            rows.append(result.row)
            new += [result.frame] if result.frame is not None else []
        np.testing.assert_array_equal(np.array(rows), whole[said:])
        np.testing.assert_array_equal(np.array(new).T, frames[:, said:])
        assert generation.frames == frames.shape[1]
    finally:
        slot.release()


def test_it_goes_on_behind_codes_that_it_would_not_have_said(runner: Runner, slot: KvSlot, codes: Any) -> None:
    spoken = codes(11)
    runner.align(
        slot, runner.prompts.prefix(SYSTEM) + runner.prompts.opening("Hello there.") + runner.prompts.begun(spoken)
    )
    generation = runner.start(slot, Sampling(max_new_tokens=60), 3, spoken)
    rows = speak(runner, generation)
    before = runner.prompts.begun(spoken).codes
    frames = revert_delay(np.concatenate([before, rows]), bos=runner.bos, eos=runner.eos)
    np.testing.assert_array_equal(frames[:, :11], spoken)
    assert generation.frames == frames.shape[1] > 11
