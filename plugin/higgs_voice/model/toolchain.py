"""Whether the kernels of a decode step can be compiled where they run: Triton builds their launcher with a C compiler."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import torch

from ..errors import DependencyError


def check_kernels(device: torch.device) -> None:
    """Compile a small kernel for a GPU and run it. Errors: `DependencyError`."""
    try:
        from . import kernels

        with torch.cuda.device(device):
            right = kernels.probe(device)
    except Exception as error:  # Triton raises what its build does: AssertionError, CalledProcessError, OSError, …
        first = (str(error).strip().splitlines() or [""])[0]
        raise DependencyError(
            f"steps on a GPU are compiled where they run, which fails here: {missing()} ({type(error).__name__}: {first})"
        ) from error
    if not right:
        raise DependencyError("steps on a GPU are compiled where they run, and what is compiled here computes wrongly")


def missing() -> str:
    """What is not there that such a compilation takes."""
    lacks: list[str] = []
    if not (shutil.which("gcc") or shutil.which("clang")):
        lacks.append("no C compiler (apt install gcc)")
    # As Triton has it, for Debian's Python.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").is_file():
        lacks.append("no headers of Python (apt install python3-dev)")
    return " and ".join(lacks) or (
        "it takes a C compiler and Python's headers (apt install gcc python3-dev), and the driver's libcuda.so.1 where "
        "ldconfig or LD_LIBRARY_PATH finds it"
    )
