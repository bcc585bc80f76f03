"""Everything that only a GPU can tell, one stage after another, each in a process of its own with a time limit.

    python benchmarks/gpu.py [--device cuda] [--out out/gpu] [--only NAME,NAME] [--limit-s SECONDS] [--list]

Checks come first (kernels against their plain counterparts, captured steps against plain ones), then the figures of
docs/benchmarks.md at the published model's shapes with random weights: no download. What a stage prints goes to ``OUT/NAME.log``, its
last line of JSON into ``OUT/summary.json``. Run again, it goes on with what is missing or failed; ``--limit-s`` ends it in time where a
machine is lent for minutes. Status 1 if a stage failed, 3 if some have not been run yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MOST_S = 600.0
"""A stage that takes longer hangs."""
LEAST_S = 30.0
"""With less time than this left no stage is begun."""


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    words: tuple[str, ...]
    """Of the command, behind the interpreter."""

    def command(self, device: str) -> list[str]:
        return [sys.executable, *(word.replace("DEVICE", device) for word in self.words)]


def _bench(name: str, *words: str) -> tuple[str, ...]:
    return ("-m", "higgs_voice.cli", "bench", name, "--device", "DEVICE", *words)


_CHECK, _STEP = "tests/model/check_kernels.py", "benchmarks/step.py"
_MANY = ("--batches", "1,2,4,8,16,32,64", "--contexts", "256,1024", "--device", "DEVICE", "--out", "OUT/NAME.json")
_3B = ("--random", "3b")
STAGES = (
    Stage("doctor", ("-m", "higgs_voice.cli", "doctor")),
    Stage("kernels", (_CHECK, "24,8,128", "DEVICE")),
    Stage("kernels-nano", (_CHECK, "4,4,64", "DEVICE")),
    Stage("kernels-packed", (_CHECK, "packed", "DEVICE")),
    Stage("kernels-int8", (_CHECK, "int8", "DEVICE")),
    Stage("step-nano", (_STEP, "--check", *_MANY)),
    Stage(
        "say",
        ("-m", "higgs_voice.cli", "say", "Hello there, this is a check.", "--device", "DEVICE", "--out", "OUT/say.wav"),
    ),
    Stage("step-3b", (_STEP, *_3B, "--check", *_MANY)),
    Stage("latency", _bench("latency", *_3B)),
    Stage("bargein", _bench("bargein", *_3B)),
    Stage("context", _bench("context", "--turns", "50", *_3B)),
    Stage("concurrency", _bench("concurrency", "--sessions", "1,2,4,8,16,32,64,100", *_3B)),
    Stage("step-3b-int8", (_STEP, *_3B, "--check", "--weight-dtype", "int8", *_MANY)),
    Stage("latency-int8", _bench("latency", "--weight-dtype", "int8", *_3B)),
    Stage("latency-nano", _bench("latency")),
    Stage("codec", ("benchmarks/codec.py", "--device", "DEVICE")),
)


def last_json(text: str) -> Any:
    """The last line that is a JSON object; None if there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def run(stage: Stage, device: str, out: Path, limit_s: float) -> dict[str, Any]:
    """One stage; what is known of it afterwards."""
    command = [
        word.replace("OUT/NAME", str(out / stage.name)).replace("OUT", str(out)) for word in stage.command(device)
    ]
    path = os.pathsep.join(filter(None, [str(ROOT / "plugin"), os.environ.get("PYTHONPATH")]))
    log = out / f"{stage.name}.log"
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            )
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
    text = log.read_text(encoding="utf-8", errors="replace")
    return {
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "command": command,
        "result": last_json(text),
        "tail": text.splitlines()[-3:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="a folder for logs and summary.json")
    parser.add_argument("--only", default="", help="names of stages, with commas")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--list", action="store_true", help="show the stages and end")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    if unknown := set(names) - {stage.name for stage in STAGES}:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stage.name for stage in STAGES)}")
    stages = [stage for stage in STAGES if not names or stage.name in names]
    if given.list:
        for stage in stages:
            print(f"{stage.name:14} {' '.join(stage.command(given.device)[1:])}")
        return
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summary = out / "summary.json"
    known: dict[str, Any] = json.loads(summary.read_text()) if summary.exists() else {}
    deadline = time.monotonic() + given.limit_s
    for stage in stages:
        left = deadline - time.monotonic()
        if known.get(stage.name, {}).get("status") == 0 or left < LEAST_S:
            continue
        print(f"{stage.name:14} …", flush=True)
        found = known[stage.name] = run(stage, given.device, out, min(left, MOST_S))
        summary.write_text(json.dumps(known, indent=1) + "\n")
        said = "took too long" if found["status"] is None else "ok" if not found["status"] else "FAILED"
        print(f"{stage.name:14} {said} {found['seconds']:.0f} s  {' | '.join(found['tail'][-1:])[:200]}", flush=True)
    failed = [stage.name for stage in stages if known.get(stage.name, {}).get("status", 0) != 0]
    missing = [stage.name for stage in stages if stage.name not in known]
    print(f"in {summary}" + (f"; failed: {', '.join(failed)}" if failed else ""), end="")
    print(f"; not run: {', '.join(missing)}, run it again" if missing else "")
    sys.exit(1 if failed else 3 if missing else 0)


if __name__ == "__main__":
    main()
