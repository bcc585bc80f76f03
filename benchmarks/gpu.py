"""Everything that only a GPU can tell, one stage after another, each in a process of its own with a time limit.

    python benchmarks/gpu.py [--device cuda] [--out out/gpu] [--only NAME,NAME] [--limit-s SECONDS] [--commit NAME] [--list]

Checks come first (kernels against their plain counterparts, captured steps against plain ones), then the figures of
docs/benchmarks.md at the published model's shapes with random weights, the shortest and most telling first: no download. What a stage
prints goes to ``OUT/NAME.log``, its last line of JSON into ``OUT/summary.json``; the figures one looks for stand there under ``figures``,
and are printed last. A stage that is ended at its limit has failed; what it had found by then is kept. Run again, it goes on with what
has not been run, then repeats what failed. ``--limit-s`` ends it in time where a machine is lent for minutes: a stage that is thought to take
longer than what is left is not begun. Status 1 if a stage failed, 3 if some have not been run yet.
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
LEAST_S, MOST_S = 60.0, 200.0
"""Between these a stage's limit is twice what it is thought to take: one that takes longer hangs."""

Figures = dict[str, dict[str, float | None]]
"""What was measured, and its numbers by name."""


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    about_s: float
    """That it is thought to take on an H200, start and warm-up included."""
    words: tuple[str, ...]
    """Of the command, behind the interpreter."""

    @property
    def limit_s(self) -> float:
        return min(max(2 * self.about_s, LEAST_S), MOST_S)

    def command(self, device: str) -> list[str]:
        return [sys.executable, *(word.replace("DEVICE", device) for word in self.words)]


def _bench(name: str, *words: str) -> tuple[str, ...]:
    return ("-m", "higgs_voice.cli", "bench", name, "--device", "DEVICE", *words)


def _step(batches: str, contexts: str, *words: str) -> tuple[str, ...]:
    many = ("--batches", batches, "--contexts", contexts, "--check", "--partial")
    return ("benchmarks/step.py", *words, *many, "--device", "DEVICE", "--out", "OUT/NAME.json")


def _context(window: str, pause_s: str) -> tuple[str, ...]:
    """The pause, in which a bounded window is made ready for its next turn, has to be longer than that takes."""
    return _bench("context", "--turns", "50", "--window", window, "--pause", pause_s, "--partial", *_3B)


_CHECK = "tests/model/check_kernels.py"
_3B, _INT8 = ("--random", "3b"), ("--weight-dtype", "int8")
STAGES = (
    Stage("doctor", 10, ("-m", "higgs_voice.cli", "doctor")),
    Stage("kernels", 20, (_CHECK, "24,8,128", "DEVICE")),
    Stage("kernels-nano", 20, (_CHECK, "4,4,64", "DEVICE")),
    Stage("kernels-int8", 20, (_CHECK, "int8", "DEVICE")),
    Stage("kernels-fused", 20, (_CHECK, "fused", "DEVICE")),
    Stage("kernels-drawn", 20, (_CHECK, "drawn", "DEVICE")),
    Stage("kernels-packed", 20, (_CHECK, "packed", "DEVICE")),
    Stage("step-nano", 30, _step("1,8,64", "256")),
    Stage(
        "say",
        30,
        ("-m", "higgs_voice.cli", "say", "Hello there, this is a check.", "--device", "DEVICE", "--out", "OUT/say.wav"),
    ),
    Stage("step-3b", 100, _step("1,4,16,64", "256,2048", *_3B)),
    Stage("latency", 55, _bench("latency", *_3B)),
    Stage("bargein", 55, _bench("bargein", *_3B)),
    Stage(
        "concurrency",
        120,
        _bench("concurrency", "--sessions", "16,64,100,128", "--seconds", "15", "--every", "--partial", *_3B),
    ),
    Stage("context-last_n", 75, _context("last_n", "0.3")),
    Stage("context-seconds", 75, _context("seconds", "0.3")),
    Stage("step-3b-int8", 100, _step("1,4,16,64", "256,2048", *_3B, *_INT8)),
    Stage("latency-int8", 55, _bench("latency", *_INT8, *_3B)),
    Stage("codec", 25, ("benchmarks/codec.py", "--device", "DEVICE")),
    Stage("latency-nano", 40, _bench("latency")),
    Stage("context-all", 140, _context("all", "1")),
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
        "limit_s": round(limit_s, 1),
        "command": command,
        "result": last_json(text),
        "tail": text.splitlines()[-3:],
    }


def failure(stage: Stage, found: dict[str, Any]) -> str | None:
    """Why a stage counts as failed; None if it does not."""
    if found["status"] is None:
        limit = found.get("limit_s", stage.limit_s)
        return f"ended after {limit:.0f} s, " + ("its limit" if limit >= stage.limit_s else "when no time was left")
    return f"status {found['status']}" if found["status"] else None


def figures_of(result: Any) -> Figures:
    """Those that one looks for in the last line of a stage, whole or partial."""
    found: Figures = {}
    match (result or {}).get("bench"):
        case "step":
            for kind, check in result.get("check", {}).items():
                found[f"check in {kind}"] = {name: value for name, value in check.items() if name != "logits_std"}
            for row in result["steps"]:  # one for each kind of kernels
                what = f"step_ms, batch {row['batch']}, context {row['context']}"
                kinds = found.setdefault(what, {"floor": row["floor_ms"]})
                for way in ("alone", "ahead"):
                    if f"{way}_ms" in row:
                        kinds[f"{row['kernels']} {way}"] = row[f"{way}_ms"]["p50"]
            for row in result.get("prefill", []):
                found[f"prefill_ms, {row['rows']} rows"] = {"p50": row["ms"]["p50"]}
        case "latency":
            found["ttfa_ms"] = {"p50": result["ttfa_ms_p50"], "p95": result["ttfa_ms_p95"], "rtf": result["rtf"]}
            found["split_ms"] = result["split_ms_p50"]
        case "bargein":
            found["idle_ms"] = {"p50": result["idle_ms_p50"], "p95": result["idle_ms_p95"]}
            found["after it"] = {"steps": result["steps_after_max"], "pcm": result["pcm_after"]}
            found["next_ttfa_ms"] = {"p50": result["next_ttfa_ms_p50"], "p95": result["next_ttfa_ms_p95"]}
        case "concurrency":
            found["capacity"] = {"sessions": result["capacity"]}
            for level in result["levels"]:
                found[f"ttfa_ms, {level['sessions']} sessions"] = {
                    "p50": level["ttfa_ms_p50"],
                    "p95": level["ttfa_ms_p95"],
                    **{name: level[name] for name in ("underruns", "longest_gap_ms", "busy")},
                }
        case "context":
            for name, window in result["windows"].items():
                found[f"ttfa_ms, {name}"] = {
                    "p50": window["ttfa_ms_p50"],
                    "p95": window["ttfa_ms_p95"],
                    "turns": len(window["ttfa_ms"]),
                    **{key: window[key] for key in ("ratio_last_first", "ratio_documented", "rebuild_ms", "rtf")},
                }
        case "codec":
            found[f"rtf, by {result['rtf_by']}"] = result["rtf"]
            found["first_piece_ms"] = {name: result["first_piece_ms"][name] for name in ("p50", "p95")}
        case _:
            pass
    return found


def _number(tail: list[str]) -> float | None:
    """The last line that is a number: the kernels' checks say the largest difference so."""
    for line in reversed(tail):
        try:
            return float(line)
        except ValueError:
            continue
    return None


def figures(known: dict[str, Any]) -> dict[str, Any]:
    """What stands on top of the summary: of what and where, and the figures of every stage that has some."""
    stages: dict[str, Figures] = {}
    partial: list[str] = []
    for name, entry in known.items():
        if found := figures_of(entry["result"]):
            stages[name] = found
            if entry["status"] != 0 or entry["result"].get("partial"):
                partial.append(name)
        elif name.startswith("kernels") and (last := _number(entry["tail"])) is not None:
            stages[name] = {"difference": {"largest": last}}
    machines = [(entry["result"] or {}).get("machine", {}) for entry in known.values()]
    return {
        "commits": sorted({entry["commit"] for entry in known.values() if entry.get("commit")}),
        "gpus": sorted({machine["gpu"] for machine in machines if machine.get("gpu")}),
        "partial": partial,
        "stages": stages,
    }


def table(found: dict[str, Any]) -> list[str]:
    """Lines for people, a few words each."""
    lines = [f"{', '.join(found['gpus']) or 'no GPU'}; commit {', '.join(found['commits']) or 'unknown'}"]
    for stage, rows in found["stages"].items():
        for number, (what, values) in enumerate(rows.items()):
            head = "" if number else stage + (" (partial)" if stage in found["partial"] else "")
            said = "  ".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in values.items())
            lines.append(f"{head:25} {what:31} {said}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="a folder for logs and summary.json")
    parser.add_argument("--only", default="", help="names of stages, with commas")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--commit", help="that is measured, where no git says it")
    parser.add_argument("--list", action="store_true", help="show the stages and end")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    if unknown := set(names) - {stage.name for stage in STAGES}:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stage.name for stage in STAGES)}")
    stages = [stage for stage in STAGES if not names or stage.name in names]
    if given.list:
        for stage in stages:
            print(
                f"{stage.name:15} {stage.about_s:3.0f} s, {stage.limit_s:3.0f} at most  {' '.join(stage.command(given.device)[1:])}"
            )
        return
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summary = out / "summary.json"
    known: dict[str, Any] = json.loads(summary.read_text()) if summary.exists() else {}
    known.pop("figures", None)
    deadline = time.monotonic() + given.limit_s
    again = [stage for stage in stages if stage.name in known and known[stage.name]["status"] != 0]
    for stage in [*(stage for stage in stages if stage.name not in known), *again]:
        left = deadline - time.monotonic()
        if left < stage.about_s:  # a later one may be shorter
            continue
        print(f"{stage.name:15} …", flush=True)
        found = run(stage, given.device, out, min(left, stage.limit_s))
        found["commit"] = given.commit or (found["result"] or {}).get("machine", {}).get("commit")
        known[stage.name] = found
        summary.write_text(json.dumps({"figures": figures(known), **known}, indent=1) + "\n")
        why = failure(stage, found)
        said = "" if found["result"] and not why else " | ".join(found["tail"][-1:])[:200]
        print(
            f"{stage.name:15} {f'FAILED, {why};' if why else 'ok,'} {found['seconds']:.0f} s  {said}".rstrip(),
            flush=True,
        )
    print("\n".join(table(figures({stage.name: known[stage.name] for stage in stages if stage.name in known}))))
    failed = [
        f"{stage.name} ({why})"
        for stage in stages
        if stage.name in known and (why := failure(stage, known[stage.name]))
    ]
    missing = [stage.name for stage in stages if stage.name not in known]
    print(f"in {summary}" + (f"; failed: {', '.join(failed)}" if failed else ""), end="")
    print(f"; not run: {', '.join(missing)}, run it again" if missing else "")
    sys.exit(1 if failed else 3 if missing else 0)


if __name__ == "__main__":
    main()
