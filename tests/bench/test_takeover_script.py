"""`benchmarks/takeover.py` loses a server and says how long the next sound took."""

from __future__ import annotations

from tests.bench.test_scripts import run


def test_a_server_that_is_lost_is_measured() -> None:
    found = run("takeover.py", "--turns", "1", "--after", "2", "--device", "cpu")
    assert found["behind"]["lost"] == found["anew"]["lost"] == 0
    assert found["behind"]["gap_ms"]["p50"] > 0
    assert found["anew"]["gap_ms"]["p50"] > 0
