"""The order in which a GPU is tried: what it runs exists, and what has run is not run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.test_readme import ROOT, check_higgs_voice

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu


def test_every_stage_is_a_command_that_exists() -> None:
    for stage in gpu.STAGES:
        words = stage.command("cuda")[1:]
        if words[0] == "-m":
            check_higgs_voice(words[2:])
            continue
        source = (ROOT / words[0]).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


def stage(name: str, code: str) -> gpu.Stage:
    return gpu.Stage(name, ("-c", code))


def test_what_has_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = stage("good", 'print("DEVICE"); print(\'{"ms": 3}\'); print("end")')
    bad = stage("bad", "import sys; sys.exit(7)")
    slow = stage("slow", "import time; time.sleep(60)")

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--device", "some", *words])
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    monkeypatch.setattr(gpu, "STAGES", (good, bad, slow))
    monkeypatch.setattr(gpu, "MOST_S", 2.0)
    assert main("--limit-s", "1") == 3
    assert "not run: good, bad, slow" in capsys.readouterr().out
    assert main() == 1
    known = json.loads((tmp_path / "summary.json").read_text())
    assert [known[name]["status"] for name in ("good", "bad", "slow")] == [0, 7, None]
    assert known["good"]["result"] == {"ms": 3}
    assert known["good"]["tail"] == ["some", '{"ms": 3}', "end"]
    assert "failed: bad, slow" in capsys.readouterr().out
    (tmp_path / "good.log").unlink()
    monkeypatch.setattr(gpu, "STAGES", (good, stage("bad", "pass")))
    assert main() == 0
    assert not (tmp_path / "good.log").exists()
    assert main("--only", "nothing") == 2
    assert "no stage nothing" in capsys.readouterr().err
