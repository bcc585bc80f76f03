from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.model.delay import DelayReverter, begun_delay, build_delay, revert_delay
from higgs_voice.model.loading import Loaded

IDS = {"bos": 256, "eos": 257}


@pytest.mark.parametrize("frames", [0, 1, 3, 8, 20])
def test_rows_are_the_processors(nano: Loaded, codes: Any, frames: int) -> None:
    clip = codes(frames)
    edge = np.ones((8, 1), dtype=np.int64)
    framed = torch.from_numpy(np.concatenate([edge * 256, clip, edge * 257], axis=1))[None]
    expected = nano.processor.build_delay_pattern(framed)[0].T.numpy()
    rows = build_delay(clip, **IDS)
    assert rows.dtype == np.int16
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("frames", [0, 1, 3, 8, 20])
def test_reverting_gives_the_codes_back(codes: Any, frames: int) -> None:
    clip = codes(frames)
    np.testing.assert_array_equal(revert_delay(build_delay(clip, **IDS), **IDS), clip)


def push_all(rows: np.ndarray) -> np.ndarray:
    reverter = DelayReverter(rows.shape[1], **IDS)
    frames = [frame for row in rows[1:] if (frame := reverter.push(row)) is not None]
    return np.array(frames, dtype=np.int16).reshape(-1, rows.shape[1]).T


def test_row_by_row_equals_whole_whatever_the_rows_hold() -> None:
    rng = np.random.default_rng(0)
    for trial in range(60):
        rows = rng.integers(0, 258 if trial % 2 else 256, size=(rng.integers(1, 40), 8)).astype(np.int16)
        rows[0] = 256
        np.testing.assert_array_equal(push_all(rows), revert_delay(rows, **IDS))


def test_frames_come_as_early_as_they_can(codes: Any) -> None:
    clip = codes(5)
    reverter = DelayReverter(8, **IDS)
    frames = [reverter.push(row) for row in build_delay(clip, **IDS)[1:]]
    assert [frame is not None for frame in frames] == [False] * 7 + [True] * 5 + [False]
    assert reverter.ended


def test_sound_ends_at_the_first_eos_of_any_codebook(codes: Any) -> None:
    rows = build_delay(codes(12), **IDS)
    rows[1 + 4 + 3, 3] = 257  # codebook 3 of frame 4
    assert revert_delay(rows, **IDS).shape == (8, 4)
    assert push_all(rows).shape == (8, 4)


def test_a_bos_inside_is_the_last_code(codes: Any) -> None:
    rows = build_delay(codes(12), **IDS)
    rows[1 + 4 + 3, 3] = 256
    assert revert_delay(rows, **IDS)[3, 4] == 255
    assert push_all(rows)[3, 4] == 255


@pytest.mark.parametrize("said", [0, 1, 3, 7, 8, 9, 20])
def test_what_is_certain_behind_frames_that_are_said(codes: Any, said: int) -> None:
    clip = codes(20)
    rows = build_delay(clip, **IDS)
    before, row, ahead = begun_delay(clip[:, :said], bos=256)
    np.testing.assert_array_equal(np.concatenate([before, row[None]]), rows[: said + 1])
    assert ahead.shape == (8, 8)
    for place, codes_ahead in enumerate(ahead):
        for book, code in enumerate(codes_ahead):
            certain = said + place < book or said + place - book < said  # BOS, or of a frame that is said
            assert code == (rows[said + 1 + place, book] if certain else -1)
    assert (ahead[-1] == -1).all()
