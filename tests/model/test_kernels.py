"""The kernels, by Triton's interpreter: the same code, on a CPU, one program after another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).with_name("check_kernels.py")


@pytest.mark.parametrize("what", ["6,2,32", "step", "int8"])
def test_kernels_are_their_plain_counterparts(what: str) -> None:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(CHECK.parents[2] / "plugin")}
    done = subprocess.run([sys.executable, str(CHECK), what], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5
