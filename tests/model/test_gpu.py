"""What is done otherwise on a GPU, with torch's calls replaced: no GPU need be there."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from higgs_voice.captured import BUCKETS, sent
from higgs_voice.config import MAX_RAS_WINDOW, Sampling
from higgs_voice.errors import DependencyError
from higgs_voice.model import runner as runner_module
from higgs_voice.model import sampling, toolchain
from higgs_voice.model.graphs import CudaGraphed, Other
from higgs_voice.model.kv import KvShape, attention
from higgs_voice.model.linear import FEW_ROWS
from higgs_voice.model.loading import Loaded
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import FUSED_UP_TO, Runner, default_rows, wait_for
from higgs_voice.model.sampling import FIRST_WINDOW, Sampler, first_window
from higgs_voice.model.toolchain import check_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class Current:
    """What stands for `torch.cuda.device`."""

    chosen = list[Any]()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.chosen.append(self.device)

    def __exit__(self, *_: object) -> None:
        self.chosen.append(None)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Devices made current, None where one was left."""
    monkeypatch.setattr(Current, "chosen", [])
    monkeypatch.setattr(torch.cuda, "device", Current)
    return Current.chosen


@pytest.mark.parametrize("fails", [False, True])
def test_attention_on_a_gpu_is_not_cudnns(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Torch's setting, which is the process's, is what it was before and after each call."""
    seen = list[bool]()

    def attend(*_: Any, **__: Any) -> str:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if fails:
            raise RuntimeError("out of memory")
        return "attended"

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for user in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(user)
            for on_gpu in (True, False):
                x: Any = SimpleNamespace(is_cuda=on_gpu)
                if fails:
                    with pytest.raises(RuntimeError):
                        attention(x, x, x)
                else:
                    assert attention(x, x, x) == "attended"
                assert torch.backends.cuda.cudnn_sdp_enabled() is user
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert seen == [False, True, False, False]


def test_what_is_sent_to_a_gpu_waits_for_nothing() -> None:
    calls = list[Any]()

    class Given:
        def pin_memory(self) -> Given:
            calls.append("pinned")
            return self

        def to(self, device: torch.device, **how: Any) -> Given:
            calls.append((device, how))
            return self

    for device in (GPU, CPU):
        sent(cast(torch.Tensor, Given()), device)
    assert calls == ["pinned", (GPU, {"non_blocking": True}), (CPU, {})]
    x = torch.ones(2)
    assert sent(x, CPU) is x


def test_only_ones_own_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole device cannot be waited for while another thread captures a graph."""
    waited = list[Any]()

    def stream(device: torch.device) -> Any:
        return SimpleNamespace(synchronize=lambda: waited.append(device))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: waited.append("everything"))
    wait_for(CPU)
    wait_for(GPU)
    assert waited == [GPU]


def test_a_check_waits_before_and_after(nano: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, calls = Runner(nano, max_rows=256), list[Any]()
    prefill = runner.prefill
    monkeypatch.setattr(runner_module, "wait_for", lambda device: calls.append(device))
    monkeypatch.setattr(runner, "prefill", lambda *given: [calls.append("prefilled"), prefill(*given)])
    runner.check()
    assert calls == [CPU, "prefilled", CPU]


def test_weights_that_were_joined_are_free_before_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()

    def free(device: torch.device) -> tuple[int, int]:
        calls.append("counted")
        return 4000, 9000

    monkeypatch.setattr(runner_module.gc, "collect", lambda: calls.append("collected"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    shape = KvShape(layers=1, heads=1, head_dim=5, dtype=torch.bfloat16, device=GPU, num_codebooks=8)
    assert default_rows(shape) == 100
    assert calls == ["collected", "emptied", "counted"]


def test_the_tables_are_wide_enough_for_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where wider ones would cost every graph; what is drawn is the same."""
    assert (first_window(CPU), first_window(GPU)) == (FIRST_WINDOW, MAX_RAS_WINDOW)
    drawn = list[list[Any]]()
    for device in (CPU, GPU):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "first_window", lambda _, device=device: first_window(device))
            sampler = Sampler(3, 8, 66, bos=64, eos=65, device=CPU)
        width = sampler.window
        history = np.random.default_rng(0).integers(0, 66, size=(40, 8)).astype(np.int16)
        settings = [Sampling(), Sampling(ras_win_len=16, ras_win_max_num_repeat=1), Sampling(temperature=0.0)]
        for line, one in enumerate(settings):
            sampler.begin(line, one, history, 40)
            sampler.refill(line, np.random.default_rng(line))
        lines = sampler.lines([0, 1, 2], settings)
        generator = torch.Generator().manual_seed(0)
        drawn.append([sampler.sample(torch.randn(3, 8, 66, generator=generator), lines).tolist() for _ in range(30)])
        assert sampler.window == width
        if device is GPU:
            sampler.begin(0, Sampling(ras_win_len=MAX_RAS_WINDOW), history, 40)
            assert sampler.window == width
    assert drawn[0] == drawn[1]


def test_a_prefill_takes_pieces_of_the_runners_own_size(nano: Loaded) -> None:
    runner = Runner(nano, max_rows=1024)
    assert runner.piece == runner_module.PIECE < runner_module.GPU_PIECE
    slot, rows, asked = runner.pool.acquire(), Rows.of_text([0] * 100, 8), list[int]()
    for piece, pieces in ((40, 3), (256, 1)):
        runner.piece = piece
        asked.clear()
        runner.align(slot, rows, should_stop=lambda: bool(asked.append(0)))
        slot.crop(0)
        assert len(asked) == pieces


def test_steps_and_prefills_are_launched_on_the_models_own_gpu(
    nano: Loaded, current: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever thread they come from: events and Triton's kernels go to the current device."""
    runner = Runner(nano, max_rows=1024)
    for name in ("_launch", "_warm_up"):
        monkeypatch.setattr(runner, name, lambda *_: current.append("work"))
    monkeypatch.setattr(runner_module, "sent", lambda x, _: current.append("sent") or x)
    runner.launch([])
    slot = runner.pool.acquire()
    slot.reserve(4)
    runner._prefill(slot, Rows.of_text([0], 8))
    assert current == ["work", *["sent"] * 4]
    current.clear()
    runner.device = GPU
    runner.launch([])
    runner.warm_up(1)
    runner._prefill(slot, Rows.of_text([0], 8))
    assert current == [GPU, "work", None, GPU, "work", None, GPU, *["sent"] * 4, None]


# Kernels that cannot be compiled


def fails_with(error: Exception) -> Callable[[torch.device], bool]:
    def probe(device: torch.device) -> bool:
        raise error

    return probe


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "RuntimeError: Failed to find C compiler"),
        (subprocess.CalledProcessError(1, ["gcc"]), "CalledProcessError: Command '['gcc']' returned non-zero"),
        (AssertionError("libcuda.so cannot found!\nPlease make sure"), "AssertionError: libcuda.so cannot found!)"),
        (PermissionError("/root/.triton"), "PermissionError: /root/.triton"),
    ],
)
def test_what_keeps_kernels_from_being_compiled_is_one_sentence(
    error: Exception, says: str, current: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = pytest.importorskip("higgs_voice.model.kernels", reason="Triton has no build for this platform")
    monkeypatch.setattr(kernels, "probe", fails_with(error))
    with pytest.raises(DependencyError, match="steps on a GPU are compiled where they run, which fails here") as found:
        check_kernels(GPU)
    assert says in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.__cause__ is error
    assert current == [GPU, None]
    monkeypatch.setattr(kernels, "probe", lambda device: device == GPU)
    check_kernels(GPU)
    with pytest.raises(DependencyError, match="computes wrongly"):
        check_kernels(CPU)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, str] = {}
    monkeypatch.setattr(toolchain.shutil, "which", there.get)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    compiler, headers = "no C compiler (apt install gcc)", "no headers of Python (apt install python3-dev)"
    assert toolchain.missing() == f"{compiler} and {headers}"
    there["clang"] = "/usr/bin/clang"
    assert toolchain.missing() == headers
    (tmp_path / "Python.h").touch()
    assert "libcuda.so.1" in toolchain.missing()
    there.clear()
    assert toolchain.missing() == compiler


def test_an_engine_without_them_is_not_begun(nano: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it takes any memory; steps without pages run without them."""
    asked = list[torch.device]()

    def check(device: torch.device) -> None:
        asked.append(device)
        raise DependencyError("no C compiler")

    monkeypatch.setattr(runner_module, "check_kernels", check)
    on_gpu = replace(nano, device=GPU, dtype=torch.bfloat16)
    with pytest.raises(DependencyError, match="no C compiler"):
        Runner(on_gpu)
    Runner(nano, max_rows=256, paged=True)
    assert asked == [GPU]


# Fused steps


def steps(runner: Runner, *kinds: str) -> list[Other]:
    return [Other(partial(runner._step_captured, cast(Any, runner.pool), cast(Any, kind))) for kind in kinds]


@pytest.mark.parametrize(
    ("found", "otherwise", "kept", "says"),
    [
        ((0.04, 0.04), 0.002, True, ""),
        ((0.6, 0.04), 0.0, False, "other logits here, by 0.60 standard deviations"),
        ((0.04, float("nan")), 0.0, False, "by nan standard deviations"),
        ((ValueError("no such instruction"),), 0.0, False, "cannot be had here"),
        ((0.04, 0.04), 0.02, False, "draw other codes here, 2.0 % of them"),
        ((0.04, 0.04), float("nan"), False, "draw other codes here"),
    ],
)
def test_steps_by_other_kernels_are_looked_at_before_they_are_taken(
    nano: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: tuple[float | Exception, ...],
    otherwise: float,
    kept: bool,
    says: str,
) -> None:
    """In a batch of one and of several. Wrong or impossible ones cost nothing but a line in the log."""
    runner, asked = Runner(nano, max_rows=256, paged=True, graphs=True), list[tuple[str, int]]()

    def error(kernels: str, rows: int) -> float:
        this = found[len(asked)]
        asked.append((kernels, rows))
        if isinstance(this, Exception):
            raise this
        return this

    monkeypatch.setattr(runner, "kernels_error", error)
    monkeypatch.setattr(runner, "drawn_otherwise", lambda kernels: otherwise)
    graphed = CudaGraphed(partial(runner._step_captured, cast(Any, runner.pool), "plain"), padding=0)
    graphed.others += steps(runner, "fused")
    runner._look_at_others(graphed)
    assert (len(graphed.others), asked) == (int(kept), [("fused", 1), ("fused", FUSED_UP_TO)][: len(found)])
    assert says in caplog.text


def test_one_kind_that_is_wrong_leaves_the_others(nano: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(nano, max_rows=256, paged=True, graphs=True)
    monkeypatch.setattr(runner, "kernels_error", lambda kernels, rows: 9.0 if kernels == "fused" else 0.01)
    monkeypatch.setattr(runner, "drawn_otherwise", lambda kernels: 0.0)
    drawn, fused, overlapped = steps(runner, "drawn", "fused", "overlapped")
    graphed = CudaGraphed(drawn.function, drawn, fused, overlapped, padding=0)
    runner._look_at_others(graphed)
    assert graphed.others == [drawn, overlapped]


@pytest.mark.parametrize(
    ("dtype", "device", "capability", "kinds"),
    [
        (torch.bfloat16, GPU, (9, 0), ("plain", "drawn", "fused", "overlapped")),
        (torch.bfloat16, GPU, (8, 6), ("plain", "drawn", "fused")),
        (torch.float16, GPU, (9, 0), ("plain",)),
        (torch.float32, GPU, (9, 0), ("plain",)),
        (torch.bfloat16, CPU, (0, 0), ("plain",)),
    ],
)
def test_which_kernels_are_tried(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    device: torch.device,
    capability: tuple[int, int],
    kinds: tuple[str, ...],
) -> None:
    """A model in float32 has its tokens alike in every way of running it, and takes no other ones."""
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    assert runner_module.kinds_for(dtype, device) == kinds


def test_kernels_that_are_named_are_taken(nano: Loaded) -> None:
    runner = Runner(nano, max_rows=256, paged=True, graphs=True, kernels="fused")
    graphed = runner._graphed
    assert graphed is not None
    assert graphed.others == []
    assert cast("partial[Any]", graphed._function).args[1] == "fused"


def test_kernels_are_tried_for_as_many_streams_as_they_are_good_for(nano: Loaded) -> None:
    runner = Runner(nano, max_rows=256, paged=True, graphs=True)
    runner.choose("plain", "drawn", "fused", "overlapped")
    graphed = runner._graphed
    assert graphed is not None
    assert [other.up_to for other in graphed.others] == [BUCKETS[-1], FUSED_UP_TO, FUSED_UP_TO]


@pytest.mark.parametrize(
    ("kind", "rows", "taken"),
    [
        ("drawn", 2, ("embedded", False)),
        ("fused", 2, ("fused", False)),
        ("overlapped", FEW_ROWS, ("fused", True)),
        ("overlapped", FEW_ROWS + 1, ("embedded", False)),
    ],
)
def test_a_step_is_by_the_kernels_that_were_named(
    nano: Loaded, monkeypatch: pytest.MonkeyPatch, kind: Any, rows: int, taken: tuple[str, bool]
) -> None:
    """More rows than products by these kernels take are multiplied as ever."""
    drawing = pytest.importorskip("higgs_voice.model.drawing", reason="Triton has no build for this platform")
    runner, seen = Runner(nano, max_rows=256, max_slots=80, paged=True, graphs=True), list[Any]()
    index = torch.full((rows,), 80)
    monkeypatch.setattr(drawing, "start", lambda *_: ("x", "cos", "sin", index))
    monkeypatch.setattr(drawing, "draw", lambda *given, ahead: [seen.append(ahead), given][1])
    monkeypatch.setattr(runner.forward, "decode_embedded", lambda *_: "embedded")
    monkeypatch.setattr(runner.forward, "decode_fused", lambda *given: [seen.append(given[-1]), "fused"][1])
    monkeypatch.setattr(runner.pool, "decode_lines", lambda *_, **given: seen.append(given.get("ahead", False)))
    pages: Any = runner.pool
    found: Any = runner._step_captured(pages, kind, index)
    assert found[1:] == (taken[0], index, runner._padding)
    assert set(seen) == {taken[1]}


@pytest.mark.parametrize(
    ("device", "capability", "driver", "can"),
    [(GPU, (9, 0), 13000, True), (GPU, (9, 0), 12020, False), (GPU, (8, 9), 13000, False), (CPU, (9, 0), 13000, False)],
)
def test_who_begins_a_kernel_before_the_last_has_ended(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, capability: tuple[int, int], driver: int, can: bool
) -> None:
    kernels = pytest.importorskip("higgs_voice.model.kernels", reason="Triton has no build for this platform")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    assert kernels.can_overlap(device) is can


@pytest.mark.parametrize(("wrong", "found"), [(None, 0.0), (0, 1.0), (2, 1.0)])
def test_every_row_of_a_step_is_looked_at(
    nano: Loaded, monkeypatch: pytest.MonkeyPatch, wrong: int | None, found: float
) -> None:
    """Those of nobody's too: a fault of a tile may be in any."""
    runner = Runner(nano, max_rows=1024, max_slots=2, paged=True, graphs=True)
    plain = torch.randn(3, 8, 66, generator=torch.Generator().manual_seed(0))
    fused = plain.clone()
    if wrong is not None:
        fused[wrong, 3, 5] += plain.std()
    asked = list[list[int]]()

    def logits(pages: object, kernels: str, index: torch.Tensor) -> torch.Tensor:
        asked.append(index.tolist())
        return plain if kernels == "plain" else fused

    monkeypatch.setattr(runner, "_logits", logits)
    monkeypatch.setattr(runner, "prefill", lambda *_: None)
    assert runner.kernels_error("fused", 3) == pytest.approx(found, abs=1e-5)
    assert [row[1:] for row in asked] == [[runner._padding] * 2] * 2
    assert runner.pool.slots == 0
