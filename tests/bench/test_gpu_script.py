"""The order in which a GPU is tried: what it runs exists, what has run is not run again, and its figures are found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from higgs_voice.cli import app
from tests.test_readme import ROOT, check_higgs_voice

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu

Main = Callable[..., int]


def test_every_stage_is_a_command_that_exists() -> None:
    for stage in gpu.STAGES:
        words = stage.command("cuda")[1:]
        if words[0] == "-m":
            check_higgs_voice(words[2:])
            continue
        source = (ROOT / words[0]).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


def test_every_stage_has_time_for_what_it_waits_for() -> None:
    """Turns of sessions are as long as what is said in them, whatever the GPU, and pauses are what they are."""
    for stage in gpu.STAGES:
        options = dict(zip(stage.words, stage.words[1:], strict=False))
        waits = 0.0
        if "concurrency" in stage.words:  # a turn begins before the end, and takes six seconds and a pause of four
            waits = len(options["--sessions"].split(",")) * (float(options["--seconds"]) + 10)
        elif "context" in stage.words:
            waits = int(options["--turns"]) * float(options["--pause"])
        assert 60 <= stage.limit_s <= 200
        assert waits < stage.about_s < stage.limit_s, stage.name
    names = [stage.name for stage in gpu.STAGES]
    assert len(set(names)) == len(names)


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs the script on stages, with limits of two seconds."""
    monkeypatch.setattr(gpu, "LEAST_S", 2.0)
    monkeypatch.setattr(gpu, "MOST_S", 2.0)

    def run(stages: list[gpu.Stage], *words: str) -> int:
        monkeypatch.setattr(gpu, "STAGES", tuple(stages))
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--device", "some", *words])
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def stage(name: str, code: str, about_s: float = 1.0) -> gpu.Stage:
    return gpu.Stage(name, about_s, ("-c", code))


def said(value: dict[str, Any]) -> str:
    return f"print({json.dumps(value)!r}, flush=True)"


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_what_has_run_is_not_run_again(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = stage("good", 'print("DEVICE"); print(\'{"ms": 3}\'); print("end")')
    bad = stage("bad", "import sys; sys.exit(7)")
    assert main([good, bad], "--limit-s", "0.5") == 3
    assert "not run: good, bad" in capsys.readouterr().out
    assert main([good, bad]) == 1
    known = summary(tmp_path)
    assert [known[name]["status"] for name in ("good", "bad")] == [0, 7]
    assert known["good"]["result"] == {"ms": 3}
    assert known["good"]["tail"] == ["some", '{"ms": 3}', "end"]
    assert "failed: bad (status 7)" in capsys.readouterr().out
    (tmp_path / "good.log").unlink()
    assert main([good, stage("bad", "pass")]) == 0
    assert not (tmp_path / "good.log").exists()
    assert main([good], "--only", "nothing") == 2
    assert "no stage nothing" in capsys.readouterr().err


def test_a_stage_that_hangs_is_ended_and_leaves_what_it_had(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = {
        "sessions": 16,
        "ttfa_ms_p50": 90.0,
        "ttfa_ms_p95": 123.4,
        "underruns": 0,
        "longest_gap_ms": 0.0,
        "busy": 0,
    }
    partial = {"bench": "concurrency", "partial": True, "capacity": 16, "levels": [level]}
    slow = stage("slow", said(partial) + "; print('{\"half', flush=True); import time; time.sleep(60)")
    assert main([slow, stage("after", "pass")]) == 1
    known = summary(tmp_path)
    assert (known["slow"]["status"], known["slow"]["result"]) == (None, partial)
    assert known["after"]["status"] == 0
    assert known["figures"]["partial"] == ["slow"]
    out = capsys.readouterr().out
    assert "slow            FAILED, ended after 2 s, its limit; 2 s" in out
    assert "failed: slow (ended after 2 s, its limit)" in out
    assert "slow (partial)" in out
    assert "p95 123.4" in out
    (tmp_path / "summary.json").unlink()
    assert main([slow], "--limit-s", "1.4") == 1
    assert "ended after 1 s, when no time was left" in capsys.readouterr().out


def test_what_was_not_run_goes_before_what_failed(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = tmp_path / "order"

    def noted(name: str, status: int = 0, about_s: float = 1.0) -> gpu.Stage:
        return stage(name, f"open({str(order)!r}, 'a').write('{name} '); raise SystemExit({status})", about_s)

    stages = [noted("good"), noted("bad", 1), noted("long", about_s=1000), noted("short")]
    assert main(stages, "--limit-s", "100") == 1  # what does not fit is left for another run, what does is run
    assert order.read_text() == "good bad short "
    assert "not run: long, run it again" in capsys.readouterr().out
    assert main([noted("good"), noted("bad"), noted("long", about_s=50), noted("short")], "--limit-s", "100") == 0
    assert order.read_text() == "good bad short long bad "


def test_the_figures_are_printed_last_and_say_of_what(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spread = {"p50": 3.0, "p95": 4.0}
    row = {"batch": 4, "context": 256, "kernels": "plain", "alone_ms": spread, "cpu_ms": spread, "floor_ms": 1.0}
    fused = {**row, "kernels": "fused", "ahead_ms": {"p50": 2.0}}
    check = {"float32": {"fused_as_plain": 1.0, "logits_after_decoding_worst": 0.001, "logits_std": 1.0}}
    step = {"bench": "step", "check": check, "steps": [row, fused], "prefill": [{"rows": 256, "ms": spread}]}
    stages = [
        stage("kernels", "print(0.00001); print('warning: unrelated')"),
        stage("step", said({**step, "machine": {"gpu": "a GPU", "commit": None}})),
    ]
    assert main(stages, "--commit", "abc") == 0
    known = summary(tmp_path)
    assert next(iter(known)) == "figures"
    assert [known[name]["commit"] for name in ("kernels", "step")] == ["abc", "abc"]
    assert known["figures"] == {
        "commits": ["abc"],
        "gpus": ["a GPU"],
        "partial": [],
        "stages": {
            "kernels": {"difference": {"largest": 0.00001}},
            "step": {
                "check in float32": {"fused_as_plain": 1.0, "logits_after_decoding_worst": 0.001},
                "step_ms, batch 4, context 256": {
                    "floor": 1.0,
                    "plain alone": 3.0,
                    "fused alone": 3.0,
                    "fused ahead": 2.0,
                },
                "prefill_ms, 256 rows": {"p50": 3.0},
            },
        },
    }
    *_, place, kernels, checked, steps, prefill, end = capsys.readouterr().out.splitlines()
    assert place == "a GPU; commit abc"
    assert kernels.split() == ["kernels", "difference", "largest", "1e-05"]
    assert checked.split()[:4] == ["step", "check", "in", "float32"]
    assert steps.endswith("context 256   floor 1  plain alone 3  fused alone 3  fused ahead 2")
    assert prefill.endswith("p50 3")
    assert end.startswith("in ")
    # What has run is shown again by a run that had nothing to do, with the commit that it was of.
    assert main(stages, "--commit", "def") == 0
    assert "a GPU; commit abc" in capsys.readouterr().out


def test_a_commit_that_git_says_needs_no_naming(main: Main, tmp_path: Path) -> None:
    assert main([stage("one", said({"bench": "other", "machine": {"gpu": None, "commit": "123"}}))]) == 0
    assert summary(tmp_path)["figures"]["commits"] == ["123"]


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        (["latency", "--turns", "2", "--pause", "0"], ["ttfa_ms", "split_ms"]),
        (["bargein", "--turns", "2"], ["idle_ms", "after it", "next_ttfa_ms"]),
        (["context", "--turns", "3", "--pause", "0", "--window", "all"], ["ttfa_ms, all"]),
        (
            ["concurrency", "--sessions", "1,2", "--seconds", "0.1", "--frames", "3", "--pause", "0"],
            ["capacity", "ttfa_ms, 1 sessions", "ttfa_ms, 2 sessions"],
        ),
    ],
)
def test_figures_are_found_in_what_the_measurements_print(words: list[str], figures: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", *words, "--model", "fake"])
    found = gpu.figures_of(gpu.last_json(done.stdout))
    assert list(found) == figures
    assert all(any(value is not None for value in row.values()) for row in found.values())
