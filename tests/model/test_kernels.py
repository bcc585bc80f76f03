"""The kernels: by Triton's interpreter, the same code on a CPU, one program after another; and by its compiler, for GPUs that need
not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from higgs_voice.model.kv import PAGE

CHECK = Path(__file__).with_name("check_kernels.py")
NO_TRITON = "Triton has no build for this platform"
CONSUMER_SHARED = 101_376
"""Bytes of shared memory that a program has on a GPU of compute capability 8.6 or 8.9."""


@pytest.mark.parametrize("what", ["6,2,32", "step", "packed", "int8"])
def test_kernels_are_their_plain_counterparts(what: str) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(CHECK.parents[2] / "plugin")}
    done = subprocess.run([sys.executable, str(CHECK), what], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5


ADDRESSES = {"lines": "*i64", "positions": "*i64", "table": "*i32"}
WHOLE = {"table_width": "i32", "rows": "i32", "N": "i32", "K": "i32", "scale": "fp32"}
SUMS = dict.fromkeys(("sums", "peaks", "weights"), "*fp32")
SHAPE = {"H": 8, "D": 128}
KERNELS: dict[str, dict[str, Any]] = {
    "_store": {**SHAPE, "HQ": 24, "PAGE": PAGE},
    "_attend": {**SHAPE, **SUMS, "G": 3, "ROWS": 16, "PAGE": PAGE, "SPLITS": 16},
    "_join": {**SHAPE, **SUMS, "G": 3, "ROWS": 16, "SPLITS": 16},
    "_probe": {"out": "*i32", "N": 16},
    "_project": {"weight": "*i8", "scale": "*fp32", "ADD": True, "ROWS": 64, "OUTPUTS": 32, "DEPTH": 128},
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("capability", "number"), [(90, "bf16"), (86, "bf16"), (86, "fp32")])
def test_kernels_compile_for_gpus(
    name: str, capability: int, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published model's shapes, with the stages that `project` asks for; what a program takes fits a consumer's GPU."""
    triton = pytest.importorskip("triton", reason=NO_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from higgs_voice.model import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = ADDRESSES | WHOLE | KERNELS[name]
    kernel = getattr(kernels, name)
    kinds = {each: given.get(each, f"*{number}") for each in kernel.arg_names}
    constants = {each: kind for each, kind in kinds.items() if not isinstance(kind, str)}
    signature = {each: "constexpr" if each in constants else kind for each, kind in kinds.items()}
    stages = {"num_stages": kernels.stages(2 if number == "bf16" else 4)} if name == "_project" else {}
    made: Any = triton.compile(
        ASTSource(kernel, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, **stages},
    )
    assert made.asm["cubin"]
    assert made.metadata.shared <= CONSUMER_SHARED
