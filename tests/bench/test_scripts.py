"""The measurements that are scripts run, and end in a line of JSON. What they measure says nothing on a busy machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu

BENCHMARKS = Path(gpu.__file__).parent


def lines(script: str, *words: str, **environment: str) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run(script: str, *words: str, **environment: str) -> dict[str, Any]:
    return json.loads(lines(script, *words, **environment)[-1])


def test_the_price_of_a_number_type_is_what_it_changes() -> None:
    """Nothing where nothing was asked for; little for keys and values in bfloat16."""
    same = run("price.py", "--exchanges", "1", "--device", "cpu")
    assert same["audio_rows"] > 20
    assert (same["worst"], same["alike"], same["divergence_nats"]) == (0.0, 1.0, 0.0)
    kept = run("price.py", "--exchanges", "1", "--device", "cpu", "--kv-dtype", "bfloat16")
    assert kept["audio_rows"] == same["audio_rows"]
    assert 0.0 < kept["worst"] < 0.5
    assert kept["alike"] > 0.95


def test_a_step_is_measured_beside_its_floor() -> None:
    said = lines("step.py", "--batches", "1,2", "--contexts", "64", "--steps", "5", "--device", "cpu", "--partial")
    *partial, found = [json.loads(line) for line in said if line.startswith("{")]
    assert [(line["partial"], len(line["steps"])) for line in partial] == [(True, 1), (True, 2)]
    assert len(gpu.figures_of(partial[0])) == 1
    assert len(gpu.figures_of(found)) == 3
    assert [(each["batch"], each["context"]) for each in found["steps"]] == [(1, 64), (2, 64)]
    assert all(each["alone_ms"]["n"] == 5 and each["floor_ms"] > 0 for each in found["steps"])


def test_sound_is_measured_piece_by_piece_and_as_a_stream(tmp_path: Path) -> None:
    """Where there is no git, too."""
    found = run("codec.py", "--repeats", "1", "--sessions", "1", "--frames", "33", PATH=str(tmp_path))
    assert found["machine"]["commit"] is None
    assert set(gpu.figures_of(found)) == {"rtf, by CPU time", "first_piece_ms"}
    assert (found["device"], found["rtf_by"]) == ("cpu", "CPU time")
    assert set(found["rtf"]) == {"transformers", "whole", "streamed", "streamed_batched"}
    assert all(factor > 0 for factor in found["rtf"].values())
    assert set(found["pieces"]["12"]) == {"p50_ms", "p95_ms", "cpu_ms", "window_p50_ms", "window_cpu_ms"}


def test_a_turn_beside_others_is_measured_by_both_schedules() -> None:
    found = run("beside.py", "--others", "1", "--rounds", "1", "--frames", "30", "--device", "cpu")
    for kind in ("ahead", "alike"):
        assert found[kind]["ttfa_ms"]["n"] == found[kind]["least_left_ms"]["n"] == 1
        assert found[kind]["ttfa_ms"]["p50"] > 0


def test_many_calls_are_measured_without_arithmetic() -> None:
    words = ("--step-ms", "1", "--prefill-ms", "1", "--codec-ms", "1", "--rows", "20000")
    found = run("load.py", "--sessions", "2,3", "--seconds", "0.5", "--frames", "12", "--pause", "0.1", *words)
    assert [each["sessions"] for each in found["levels"]] == [2, 3]
    assert all(each["turns"] >= each["sessions"] and each["busy"] == 0 for each in found["levels"])
    assert all(each["ttfa_ms_p50"] > 0 and each["host_cpu_s_per_audio_s"] > 0 for each in found["levels"])
