"""Percentiles, the place, the last line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from higgs_voice.bench.common import (
    DELAY_ROWS,
    SENTENCES,
    HostShare,
    Place,
    Spread,
    emit,
    engine_for,
    sampling_for,
    sentence,
)
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


def test_what_the_host_takes_is_counted_from_the_start(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 700 0 0 0 100 0 0\ncpu0 1 2 3\n")
    share = HostShare(stat)
    assert share.percent is None  # no time has passed
    stat.write_text("cpu  190 0 100 770 0 0 0 140 55 0\n")
    assert share.percent == 20.0
    stat.unlink()
    assert share.percent is None
    assert HostShare(stat).percent is None


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
