"""Percentiles, the place, the last line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from higgs_voice.bench.common import DELAY_ROWS, SENTENCES, Place, Spread, emit, engine_for, sampling_for, sentence
from higgs_voice.errors import SettingsError


def test_percentiles_are_by_nearest_rank() -> None:
    spread = Spread.of([float(value) for value in range(200, 0, -1)])
    assert (spread.n, spread.p50, spread.p95, spread.p99, spread.low, spread.high) == (
        200,
        100.5,
        190.0,
        198.0,
        1.0,
        200.0,
    )
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0, 3.0, 3.0, 3.0)
    assert math.isnan(Spread.of([]).p50)


def test_the_place_says_where_and_with_what() -> None:
    place = Place.here()
    assert place.cores >= 1
    assert place.memory_gb > 0
    assert place.packages["higgs-voice"]
    assert place.cpu in place.lines()[0]
    if (Path(__file__).parents[2] / ".git").exists():
        assert place.commit is not None
        assert len(place.commit.rstrip("+")) == 12


def test_the_last_line_is_json_whatever_was_measured() -> None:
    line = emit("x", Place.here(), {"a": [1 / 3, float("nan")], "b": {"c": float("inf")}})
    assert "\n" not in line
    found = json.loads(line)
    assert (found["bench"], found["a"], found["b"]) == ("x", [0.3333, None], {"c": None})
    assert found["machine"]["cores"] >= 1


def test_chunks_are_of_a_known_length() -> None:
    assert sampling_for(50).max_new_tokens == 50 + DELAY_ROWS
    with pytest.raises(SettingsError, match="at least one frame"):
        sampling_for(0)
    assert sentence(len(SENTENCES)) == SENTENCES[0]
    lengths = [len(text) for text in SENTENCES]
    assert max(lengths) - min(lengths) <= 6


def test_the_engine_is_chosen_by_name() -> None:
    assert type(engine_for("fake")).__name__ == "FakeSynthesizer"
