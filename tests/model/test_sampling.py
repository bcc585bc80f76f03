"""The sampler against transformers' own processors, by exact probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from higgs_voice.config import MAX_RAS_WINDOW, Sampling
from higgs_voice.errors import SettingsError
from higgs_voice.model.delay import begun_delay
from higgs_voice.model.sampling import BLOCK, Sampler, filtered, invert, uniforms

K, V, BOS, EOS = 4, 34, 32, 33
GRID = 4000
NO_HISTORY = np.zeros((0, K), dtype=np.int16)


def make(lines: int = 4) -> Sampler:
    return Sampler(lines, K, V, bos=BOS, eos=EOS, device=torch.device("cpu"))


def logits_for(rows: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, K, V, generator=torch.Generator().manual_seed(seed)) * scale


def reference(logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float) -> torch.Tensor:
    """Probabilities [..., V] as transformers computes them before its multinomial."""
    scores = logits.reshape(-1, V).clone()
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warper in warpers:
        scores = warper(torch.empty(0), scores)
    return scores.softmax(-1).view(logits.shape)


SETTINGS = [
    (1.0, None, 1.0),
    (0.7, None, 0.95),
    (0.3, None, 0.5),
    (1.3, 5, 1.0),
    (1.0, 1, 1.0),
    (0.9, 8, 0.8),
    (2.0, 50, 0.99),
    (1.0, None, 1e-6),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_probabilities_are_transformers(temperature: float, top_k: int | None, top_p: float) -> None:
    logits = logits_for(5)
    column = torch.ones(5, 1, 1)
    p, codes = filtered(logits, column * temperature, (column * min(top_k or V, V)).long(), column * top_p)
    mine = torch.zeros_like(logits).scatter(-1, codes, p / p.sum(-1, keepdim=True))
    torch.testing.assert_close(mine, reference(logits, temperature, top_k, top_p), atol=1e-6, rtol=1e-5)


def test_codes_as_probable_as_the_kth_stay() -> None:
    logits = torch.tensor([[[3.0, 1.0, 1.0, 0.0] + [-5.0] * (V - 4)] * K])
    column = torch.ones(1, 1, 1)
    p, codes = filtered(logits, column, (column * 2).long(), column)
    assert sorted(codes[0, 0, p[0, 0] > 0].tolist()) == [0, 1, 2]


def drawn(sampler: Sampler, logits: torch.Tensor, u: float, again: float = 0.0) -> torch.Tensor:
    """The row that line 0 gets at a uniform number; the line is left as it was."""
    before = sampler.ints.clone()
    sampler.uniforms[..., 0], sampler.uniforms[..., 1] = u, again
    row = sampler.sample(logits, sampler.gather(torch.tensor([0])))[0]
    sampler.ints.copy_(before)
    return row


def distribution(sampler: Sampler, logits: torch.Tensor, *, again: bool = False) -> torch.Tensor:
    """Probabilities [K, V] by which line 0 draws: the share of evenly spaced uniform numbers that give each code."""
    many = make(GRID)
    if sampler.window > many.window:
        many._widen(sampler.window)
    many.ints[:], many.parameters[:] = sampler.ints[0], sampler.parameters[0]
    many.uniforms[..., int(again)] = ((torch.arange(GRID) + 0.5) / GRID)[:, None, None]
    rows = many.sample(logits.expand(GRID, -1, -1), many.gather(torch.arange(GRID)))
    return torch.nn.functional.one_hot(rows, V).float().mean(dim=0)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [SETTINGS[1], SETTINGS[5]])
def test_draws_follow_the_probabilities(temperature: float, top_k: int | None, top_p: float) -> None:
    sampler, logits = make(1), logits_for(1)
    settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, ras_win_len=None)
    sampler.begin(0, settings, NO_HISTORY, 0)
    sampler.ints[0, 0] = K + 1  # past the rows in which later codebooks are BOS
    expected = reference(logits, temperature, top_k, top_p)[0]
    # An even grid of numbers finds every probability to within one of its steps.
    torch.testing.assert_close(distribution(sampler, logits), expected, atol=1.01 / GRID, rtol=0)


def test_numbers_at_the_edges_draw_codes_that_may_be_drawn() -> None:
    sampler, logits = make(1), logits_for(1)
    sampler.begin(0, Sampling(top_k=3, ras_win_len=None), NO_HISTORY, 0)
    sampler.ints[0, 0] = K + 1
    allowed = reference(logits, 0.7, 3, 0.95)[0] > 0
    for u in (0.0, 1 - 2.0**-22):
        assert allowed[torch.arange(K), drawn(sampler, logits, u)].all()
    total = torch.rand(4096, 7)
    top = torch.full((4096,), 1 - 2.0**-22)
    assert int(invert(total, top).max()) <= 6


@pytest.mark.parametrize("least", [0.0, 1e-300, 1e-45])
def test_a_share_too_small_for_float32_leaves_the_most_probable_code(least: float) -> None:
    logits, column = logits_for(3), torch.ones(3, 1, 1)
    p, codes = filtered(logits, column, None, column * least)
    for u in (0.0, 1 - 2.0**-22):
        index = invert(p, torch.full((3, K), u))
        assert torch.equal(codes.gather(-1, index[..., None])[..., 0], logits.argmax(-1))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_draw_is_always_a_code(value: float) -> None:
    for u in (0.0, 0.5, 1 - 2.0**-22):
        index = invert(torch.full((2, K, V), value), torch.full((2, K), u))
        assert int(index.min()) >= 0
        assert int(index.max()) < V


def test_what_would_harm_other_streams_is_no_setting() -> None:
    with pytest.raises(
        SettingsError, match=r"^Sampling.ras_win_len: Input should be less than or equal to 256 \(got 257\)$"
    ):
        Sampling(ras_win_len=MAX_RAS_WINDOW + 1)
    with pytest.raises(
        SettingsError, match=r"^Sampling.top_p: Input should be greater than or equal to 0.000001 \(got 1e-300\)$"
    ):
        Sampling(top_p=1e-300)
    Sampling(ras_win_len=MAX_RAS_WINDOW, top_p=1e-6)


def test_any_setting_draws_codes() -> None:
    """Whatever a request may carry; the tables are float32."""
    extremes = [
        Sampling(top_p=1e-6),
        Sampling(top_k=10**30),
        Sampling(ras_win_max_num_repeat=10**400, ras_win_len=1),
        Sampling(ras_win_len=MAX_RAS_WINDOW, ras_win_max_num_repeat=1),
        Sampling(temperature=5.0),
    ]
    sampler = make(len(extremes))
    for line, sampling in enumerate(extremes):
        sampler.begin(line, sampling, NO_HISTORY, 0)
        sampler.refill(line, np.random.default_rng(line))
    for seed in range(30):
        logits = logits_for(len(extremes), seed, scale=20.0)
        rows = sampler.sample(logits, sampler.lines(range(len(extremes)), extremes))
        assert int(rows.min()) >= 0
        assert int(rows.max()) < V


def test_numbers_are_below_one_and_repeat() -> None:
    numbers = uniforms(np.random.default_rng(3), 500, 8)
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0.0
    assert numbers.max() <= 1 - 2.0**-22
    np.testing.assert_array_equal(numbers, uniforms(np.random.default_rng(3), 500, 8))


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-45, 1e-7])
def test_temperature_zero_takes_the_largest_logit(temperature: float) -> None:
    """And one that float32 cannot tell from it, also where nothing but greedy is computed."""
    sampler, logits = make(1), logits_for(1)
    sampling = Sampling(temperature=temperature, ras_win_len=None)
    sampler.begin(0, sampling, NO_HISTORY, 0)
    sampler.ints[0, 0] = K + 1
    for u in (0.0, 0.5, 0.99):
        assert drawn(sampler, logits, u).tolist() == logits[0].argmax(-1).tolist()
    assert sampler.lines([0], [sampling]).temperature is None


def test_codebooks_begin_and_end_staggered() -> None:
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_len=None), NO_HISTORY, 0)
    logits = torch.zeros(1, K, V)
    logits[..., 5] = 1.0
    line = sampler.gather(torch.tensor([0]))
    rows = [sampler.sample(logits, line)[0].tolist() for _ in range(K + 1)]
    logits[:, 0, EOS] = 2.0  # codebook 0 ends; the others would go on for ever
    rows += [sampler.sample(logits, line)[0].tolist() for _ in range(K + 1)]
    b, e = BOS, EOS
    assert rows == [
        [5, b, b, b],
        [5, 5, b, b],
        [5, 5, 5, b],
        [5, 5, 5, 5],
        [5, 5, 5, 5],
        [e, 5, 5, 5],
        [e, 5, 5, 5],
        [e, e, 5, 5],
        [e, e, e, 5],
        [e, e, e, e],
    ]


def test_an_eos_in_any_codebook_starts_the_end() -> None:
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_len=None), NO_HISTORY, 0)
    sampler.ints[0, 0] = K + 1
    logits = torch.zeros(1, K, V)
    logits[..., 5] = 1.0
    ending = logits.clone()
    ending[:, 2, EOS] = 2.0
    line = sampler.gather(torch.tensor([0]))
    rows = [sampler.sample(step, line)[0].tolist() for step in (ending, logits, logits)]
    assert rows == [[EOS] * 3 + [5], [EOS] * 3 + [5], [EOS] * 4]


def test_an_eos_in_the_last_codebook_is_the_end() -> None:
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_len=None), NO_HISTORY, 0)
    sampler.ints[0, 0] = K + 1
    logits = torch.zeros(1, K, V)
    logits[:, K - 1, EOS] = 1.0
    assert sampler.sample(logits, sampler.gather(torch.tensor([0])))[0].tolist() == [EOS] * K


def with_history(rows: list[list[int]], **settings: Any) -> Sampler:
    """A sampler whose line 0 has these rows behind it, newest last."""
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, **settings), np.array(rows, dtype=np.int16), 0)
    # `begin` puts the all-BOS row behind the history. Drop it, as if it were longer ago.
    first = sampler.history
    sampler.ints[0, first + K :] = sampler.ints[0, first:-K].clone()
    sampler.ints[0, 0] = K + 1
    return sampler


@pytest.mark.parametrize(
    ("window", "repeats", "redraws"),
    [
        (7, 2, [True, False, False, True]),
        (7, 3, [False, False, False, True]),
        (1, 1, [False, True, False, True]),
        (2, 2, [False, False, False, True]),
        (20, 1, [True, True, False, True]),
        (None, 1, [False] * 4),
    ],
)
def test_repeated_codes_are_drawn_again_from_the_raw_softmax(
    window: int | None, repeats: int, redraws: list[bool]
) -> None:
    # Code 5 would come in every codebook: it stands 2, 1, 0 and 3 times in the last three rows; codebook 2 holds BOS.
    rows = [[5, 1, BOS, 5], [5, 2, BOS, 5], [1, 5, BOS, 5]]
    sampler = with_history(rows, ras_win_len=window, ras_win_max_num_repeat=repeats)
    logits = logits_for(1)
    logits[..., 5] = 9.0
    logits[..., EOS] = -torch.inf  # an end says EOS in the codebooks before it too
    raw = logits[0].softmax(-1)
    found = distribution(sampler, logits, again=True)
    for book, redraw in enumerate(redraws):
        expected = raw[book] if redraw else torch.eye(V)[5]
        torch.testing.assert_close(found[book], expected, atol=1.01 / GRID, rtol=0)


def test_bos_and_eos_are_no_repetition() -> None:
    rows = [[EOS, BOS, 1, 1]] * 5
    sampler = with_history(rows, ras_win_len=7)
    logits = torch.zeros(1, K, V)
    logits[:, 0, EOS], logits[:, 1, BOS], logits[:, 2:, 2] = 9.0, 9.0, 9.0
    assert drawn(sampler, logits, 0.5, 0.001).tolist() == [EOS, BOS, 2, 2]


def test_the_window_may_be_long() -> None:
    rows = [[7] * K] + [[n % 5] * K for n in range(59)]
    sampler = make(2)
    sampler.begin(1, Sampling(ras_win_len=3), NO_HISTORY, 9)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_len=61, ras_win_max_num_repeat=1), np.array(rows, np.int16), 4)
    sampler.ints[0, 0] = K + 1
    logits = torch.zeros(1, K, V)
    logits[..., 7] = 1.0
    assert drawn(sampler, logits, 0.0, 0.0).tolist() == [0] * K
    assert sampler.ints[1, :3].tolist() == [1, 0, 9]


def test_windows_that_grow_make_new_tables_a_few_times_only() -> None:
    """Each time all that they hold is copied; on a GPU they are as wide as they get from the start."""
    sampler, widths = make(1), set[int]()
    for window in range(1, MAX_RAS_WINDOW + 1):
        sampler.begin(0, Sampling(ras_win_len=window), NO_HISTORY, 0)
        widths.add(sampler.window)
    assert widths == {16, 32, 64, 128, 256}


def test_lines_do_not_know_of_each_other() -> None:
    """Each line alone and all in one batch, with different settings and places in their generation: the same rows."""
    settings = [
        Sampling(),
        Sampling(temperature=0.0, ras_win_len=None),
        Sampling(temperature=1.2, top_k=4, ras_win_len=3, ras_win_max_num_repeat=1),
        Sampling(temperature=0.4, top_p=0.6),
    ]

    def prepare() -> Sampler:
        sampler = make(4)
        for line, sampling in enumerate(settings):
            sampler.begin(line, sampling, NO_HISTORY, line)
            sampler.ints[line, 0] = 1 + 3 * line
            sampler.refill(line, np.random.default_rng(line))
        return sampler

    steps = [logits_for(4, seed, scale=4.0) for seed in range(30)]
    together, alone = prepare(), prepare()
    for logits in steps:
        rows = together.sample(logits, together.lines([0, 1, 2, 3], settings))
        for line, sampling in enumerate(settings):
            single = alone.sample(logits[line : line + 1], alone.lines([line], [sampling]))
            assert rows[line].tolist() == single[0].tolist()
    assert torch.equal(together.ints, alone.ints)
    # What a captured graph computes, where nothing is left out.
    everything = prepare()
    for logits in steps:
        everything.sample(logits, everything.gather(torch.arange(4)))
    assert torch.equal(together.ints, everything.ints)
    assert len(steps) < BLOCK


def test_a_bos_that_was_drawn_is_no_repetition_either() -> None:
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_max_num_repeat=1), NO_HISTORY, 0)
    sampler.ints[0, 0] = K + 1
    logits = torch.zeros(1, K, V)
    logits[..., BOS] = 1.0
    lines = sampler.gather(torch.tensor([0]))
    # A redraw at 0 would give code 0.
    assert [sampler.sample(logits, lines)[0].tolist() for _ in range(3)] == [[BOS] * K] * 3


def test_frames_that_are_said_already_stay_as_they_are() -> None:
    """Whatever the logits are, and however often a code stands there."""
    spoken = np.array([[1, 2, 3, 4, 5, 6]] * K, dtype=np.int16)
    spoken[3] = 9
    rows = begun_delay(spoken, bos=BOS)[0]
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_max_num_repeat=1), rows, 6, spoken)
    line = sampler.gather(torch.tensor([0]))
    assert [tensor.tolist() for tensor in sampler.last(line.index)] == [[[6, 5, 4, 9]], [6]]
    assert sampler.ints[0, -2 * K :].tolist() == [5, 4, 3, 9, 6, 5, 4, 9]  # for repetitions
    logits = torch.zeros(1, K, V)
    logits[..., 20] = 9.0
    assert sampler.sample(logits, line)[0].tolist() == [20, 6, 5, 9]
    logits[..., 20], logits[..., 21] = 0.0, 9.0
    assert sampler.sample(logits, line)[0].tolist() == [21, 21, 6, 9]
    logits[..., 21], logits[..., 22] = 0.0, 9.0
    assert sampler.sample(logits, line)[0].tolist() == [22, 22, 22, 9]
    logits[..., 22], logits[..., 23] = 0.0, 9.0
    assert sampler.sample(logits, line)[0].tolist() == [23] * K


def test_an_end_behind_frames_that_are_said_leaves_them_whole() -> None:
    spoken = np.array([[1, 2, 3, 4, 5, 6]] * K, dtype=np.int16)
    sampler = make(1)
    sampler.begin(0, Sampling(temperature=0.0, ras_win_len=None), begun_delay(spoken, bos=BOS)[0], 6, spoken)
    logits = torch.zeros(1, K, V)
    logits[..., EOS] = 9.0
    line = sampler.gather(torch.tensor([0]))
    rows = [sampler.sample(logits, line)[0].tolist() for _ in range(K)]
    assert rows == [[EOS, 6, 5, 4], [EOS, EOS, 6, 5], [EOS, EOS, EOS, 6], [EOS] * K]
