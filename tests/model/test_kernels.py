"""The kernels: by Triton's interpreter, the same code on a CPU, one program after another; and by its compiler, for GPUs that need
not be there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from higgs_voice.model.kv import PAGE
from higgs_voice.model.linear import FEW_ROWS
from higgs_voice.model.sampling import BLOCK, EOS_AGE, LAST, NOTHING, POSITION, PRODUCED

CHECK = Path(__file__).with_name("check_kernels.py")
NO_TRITON = "Triton has no build for this platform"
CONSUMER_SHARED = 101_376
"""Bytes of shared memory that a program has on a GPU of compute capability 8.6 or 8.9."""


CHECKS = ("step", "packed", "fused", "drawn", "int8", "6,2,32")
"""The longest first."""


def interpreted(what: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(CHECK.parents[2] / "plugin")}
    return subprocess.run([sys.executable, str(CHECK), what], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checks() -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Each in a process of its own, as many at once as there are processors: the interpreter takes its time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {what: pool.submit(interpreted, what) for what in CHECKS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("what", CHECKS)
def test_kernels_are_their_plain_counterparts(
    what: str, checks: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    done = checks[what].result()
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5


ADDRESSES = {"lines": "*i64", "positions": "*i64", "table": "*i32"}
WHOLE = {"table_width": "i32", "rows": "i32", "N": "i32", "K": "i32", "scale": "fp32", "eps": "fp32"}
SUMS = dict.fromkeys(("sums", "peaks", "weights"), "*fp32")
SHAPE = {"H": 8, "D": 128}
ATTEND = {**SHAPE, **SUMS, "AHEAD": False, "G": 3, "ROWS": 16, "PAGE": PAGE, "SPLITS": 16}
PLAIN = {"scale": "*fp32", "NORM": False, "SCALED": False, "GATED": False, "ADD": False, "AHEAD": False}
EIGHT = {**PLAIN, "weight": "*i8", "SCALED": True}
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "store": ("_store", {**SHAPE, "HQ": 24, "PAGE": PAGE}),
    "attend": ("_attend", {**ATTEND, "NEW": False}),
    "attend and store": ("_attend", {**ATTEND, "NEW": True}),
    "join": ("_join", {**SHAPE, **SUMS, "AHEAD": False, "G": 3, "SPLITS": 16}),
    "probe": ("_probe", {"out": "*i32", "N": 16}),
    "qkv": ("_project", {**PLAIN, "NORM": True}),
    "out": ("_project", {**PLAIN, "ADD": True}),
    "gate and up": ("_project", {**PLAIN, "NORM": True, "GATED": True}),
    "heads": ("_project", {**PLAIN, "NORM": True, "out": "*fp32"}),
    "eight bits": ("_project", {**EIGHT, "ADD": True}),
    "gate and up of eight bits": ("_project", {**EIGHT, "NORM": True, "GATED": True}),
}
COLUMNS = {"PRODUCED": PRODUCED, "EOS_AGE": EOS_AGE, "POSITION": POSITION, "LAST": LAST, "NOTHING": NOTHING}
TABLES = dict.fromkeys(("ints", "ahead", "index", "drawn", "rows", "positions"), "*i64")
NUMBERS = dict.fromkeys(("width", "H", "V", "nobody", "bos", "eos"), "i32")
SAMPLER = {**COLUMNS, **TABLES, **NUMBERS, **dict.fromkeys(("logits", "parameters", "uniforms"), "*fp32")}
SAMPLER |= {"K": 8, "BLOCK": BLOCK, "AHEAD": False, "WINDOW": 256, "SPAN": 256, "CODES": 2048, "MOST": 1024, "FEW": 2}
KERNELS |= {
    "start": ("_start", {**SAMPLER, "D": 128, "PART": 512}),
    "draw": ("_draw", SAMPLER),
    "finish": ("_finish", {**SAMPLER, "BOOKS": 8, "KEPT": 2048}),
}
OVERLAPPED = (
    "attend and store",
    "join",
    "qkv",
    "out",
    "gate and up",
    "heads",
    "gate and up of eight bits",
    "draw",
    "finish",
)
OUTPUTS = {"qkv": 5120, "out": 3072, "gate and up": 8192, "heads": 8208}
"""Of the published model's projections."""


CASES = [(name, False) for name in KERNELS] + [(name, True) for name in OVERLAPPED]


@pytest.mark.parametrize(("name", "ahead"), CASES)
@pytest.mark.parametrize(("capability", "number"), [(90, "bf16"), (86, "bf16"), (86, "fp32")])
def test_kernels_compile_for_gpus(
    name: str, ahead: bool, capability: int, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published model's shapes, with the tiles that `project` takes for the fewest and the most rows; what a program takes fits a
    consumer's GPU, and nothing of it is put aside into slow memory."""
    triton = pytest.importorskip("triton", reason=NO_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from higgs_voice.model import drawing, kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    which, known = KERNELS[name]
    if ahead:
        if capability < 90:
            return  # not asked for there
        known = known | {"AHEAD": True}
    kernel = getattr(drawing if name in ("start", "draw", "finish") else kernels, which)
    size = 2 if number == "bf16" else 4
    tiles: list[tuple[dict[str, int], int]] = [({}, kernels.pages_ahead(size))]
    if which == "_project":
        found = [kernels.tiles(rows, OUTPUTS.get(name, 3072), size) for rows in (1, 32, FEW_ROWS)]
        tiles = [({"ROWS": rows, "OUTPUTS": outputs, "DEPTH": depth}, loads) for rows, outputs, depth, loads in found]
    for tile, loads in tiles:
        given = ADDRESSES | WHOLE | known | tile
        kinds = {each: given.get(each, f"*{number}") for each in kernel.arg_names}
        constants = {each: kind for each, kind in kinds.items() if not isinstance(kind, str)}
        signature = {each: "constexpr" if each in constants else kind for each, kind in kinds.items()}
        # Sizes and addresses are multiples of sixteen, as when it is launched: what loads several numbers at once.
        sixteen = [["tt.divisibility", 16]]
        attributes = {
            (place,): sixteen
            for place, each in enumerate(kernel.arg_names)
            if str(kinds[each]).startswith("*") or each in ("N", "K")
        }
        made: Any = triton.compile(
            ASTSource(kernel, signature, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": 8 if name == "draw" else 4, "num_stages": loads, "launch_pdl": ahead},
        )
        assert made.asm["cubin"]
        assert made.metadata.shared <= CONSUMER_SHARED, tile
        ptx = made.asm["ptx"]
        assert ".local" not in ptx, tile
        assert made.metadata.launch_pdl is ahead
        # What a kernel reads of another one's it reads behind the wait, and what it writes as well.
        before, wait, _ = ptx.partition("griddepcontrol.wait")
        assert bool(wait) is ahead
        assert not ahead or not re.search(r"ld\.global|cp\.async|st\.global", before)
        assert ("prefetch.global.L2" in before) is (ahead and which == "_project")
