"""What every measurement needs: where it ran, percentiles, an engine that is measured, text of a known length."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..backends import create_backend
from ..config import Sampling, engine_kind
from ..conversation.synthesizer import Synthesizer
from ..errors import SettingsError

PACKAGES = ("higgs-voice", "torch", "transformers", "numpy", "pipecat-ai", "livekit-agents")
DELAY_ROWS = 8
"""Rows a chunk takes beside its frames: the delay of the last codebook."""

SENTENCES = (
    "Your order left the warehouse this morning.",
    "It should reach you on Friday before noon.",
    "The driver will leave it with a neighbour.",
    "You can follow every step on your phone.",
    "The invoice is in the very same message.",
    "Please tell me if the address is wrong.",
    "The repair itself takes an hour at most.",
    "We will call you on the evening before.",
    "There is nothing for you to pay today.",
    "I have made a careful note of everything.",
    "Let me read the main points back to you.",
    "Is there anything else on your mind today?",
)
"""An agent's sentences of much the same length; the embedded voice takes more than two seconds for each."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what something was measured."""

    cpu: str
    cores: int
    """That this process may use."""
    memory_gb: float
    gpu: str | None
    threads: int | None
    """Of torch, in this process."""
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None
    """Of a checkout; None for an installed package."""

    @classmethod
    def here(cls) -> Place:
        gpu, threads = _torch()
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gb=_memory_gb(),
            gpu=gpu,
            threads=threads,
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
            commit=_commit(),
        )

    def lines(self) -> list[str]:
        """For people."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        threads = f", {self.threads} torch threads" if self.threads is not None else ""
        return [
            f"{self.cpu}, {self.cores} cores{threads}, {self.memory_gb:.0f} GB; GPU: {self.gpu or 'none'}",
            f"{self.system}, Python {self.python}, {packages}; commit {self.commit or 'unknown'}",
        ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> tuple[str | None, int | None]:
    """The GPU's name and torch's threads, where torch is in use."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None, None
    return (torch.cuda.get_device_name() if torch.cuda.is_available() else None), torch.get_num_threads()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return 0.0


def _commit() -> str | None:
    """The checkout's commit, with a + where files were changed."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not (Path(git("rev-parse", "--show-toplevel")) / "plugin" / "higgs_voice").is_dir():
            return None  # installed inside somebody else's checkout
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


class HostShare:
    """What the host of a virtual machine takes of its processors for others, from here on ("steal" in `/proc/stat`). A time measured
    meanwhile is the machine's and not ours."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._before = self._read()

    @property
    def percent(self) -> float | None:
        """None where the system does not say."""
        now = self._read()
        if now is None or self._before is None or now[1] <= self._before[1]:
            return None
        return 100.0 * (now[0] - self._before[0]) / (now[1] - self._before[1])

    def _read(self) -> tuple[int, int] | None:
        """(stolen, all) ticks of all processors since the machine began."""
        try:
            ticks = [int(word) for word in self._path.read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one quantity."""

    n: int
    p50: float
    p95: float
    p99: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """By the nearest rank; of nothing it is all NaN."""
        ordered = sorted(values)
        if not ordered:
            nan = float("nan")
            return cls(0, nan, nan, nan, nan, nan)

        def at(share: float) -> float:
            return ordered[math.ceil(len(ordered) * share / 100) - 1]

        return cls(len(ordered), statistics.median(ordered), at(95), at(99), ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"p50 {self.p50:7.1f}  p95 {self.p95:7.1f}  p99 {self.p99:7.1f}  (n={self.n}, {self.low:.1f} to {self.high:.1f})"


def ms(seconds: float) -> float:
    """Milliseconds, rounded to a tenth."""
    return round(seconds * 1000.0, 1)


def rounded(value: Any) -> Any:
    """Floats anywhere in it to four digits after the point; NaN and infinity to None, which JSON can say."""
    if isinstance(value, float):
        return round(value, 4) if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def emit(name: str, place: Place, result: dict[str, Any]) -> str:
    """The last line: one JSON object with the result on top and the place under ``machine``."""
    return json.dumps(rounded({"bench": name, **result, "machine": asdict(place)}), ensure_ascii=False)


def engine_for(
    model: str, *, random: str | None = None, device: str = "auto", dtype: str = "auto", **types: Any
) -> Synthesizer:
    """The engine to measure. Its guards do not end chunks: a measurement says itself how long they are.

    `random`: ``3b`` for the published model's true shapes with random weights instead of `model`. `types`: the
    `codec_dtype`, `kv_dtype` and `weight_dtype` of an engine in this process.
    Errors: `SettingsError`.
    """
    if random is None and engine_kind(model) != "local":
        return create_backend(model, **types)
    from ..backends.local import Guards, LocalSynthesizer

    guards = Guards(base_s=600.0, silence_s=600.0, min_frames=1, retries=0)
    if random is None:
        return LocalSynthesizer(model, device=device, dtype=dtype, guards=guards, **types)
    from ..model.loading import random_model

    loaded = random_model(random, device=device, dtype=dtype, weight_dtype=types.pop("weight_dtype", "auto"))
    return LocalSynthesizer(loaded=loaded, guards=guards, **types)


def sampling_for(frames: int, seed: int = 1) -> Sampling:
    """Chunks of `frames` frames, if the text is worth as many."""
    if frames < 1:
        raise SettingsError(f"a chunk needs at least one frame, not {frames}")
    return Sampling(seed=seed, max_new_tokens=frames + DELAY_ROWS)


def sentence(number: int) -> str:
    """The text of chunk `number`."""
    return SENTENCES[number % len(SENTENCES)]
