"""Steps by CUDA graphs, with something else in a graph's place: which are captured, and what comes of those that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from higgs_voice.model import graphs as module
from higgs_voice.model.graphs import CudaGraphed, Other

CPU = torch.device("cpu")


class Recorded:
    """What stands for a CUDA graph."""

    def __init__(self, function: Callable[[], torch.Tensor]) -> None:
        self.out = function()

    def replay(self) -> None:
        """It was replayed when it was captured."""

    def pool(self) -> str:
        return "memory"


def test_memory_that_ends_costs_one_batch_size_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other; it is not tried again at every step, but when all are made anew, in other memory."""
    full, tried, given = True, list[int](), list[Any]()

    def capture(function: Callable[[], torch.Tensor], device: torch.device, memory: Any) -> Any:
        graph = Recorded(function)
        tried.append(len(graph.out))
        given.append(memory)
        if full and len(graph.out) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph, graph.out, graph.out.clone()

    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    graphed = CudaGraphed(lambda lines: lines * 2, padding=9)
    assert graphed([1, 2], CPU).tolist() == [18, 18]  # what it was captured with
    for _ in range(3):
        assert graphed([1, 2, 3], CPU).tolist() == [2, 4, 6]
    assert graphed([1], CPU).tolist() == [18]
    assert (tried, given, graphed.disabled) == ([2, 4, 1], [None, "memory", "memory"], False)
    full = False
    graphed.reset()
    graphed([1, 2, 3], CPU)
    assert (tried[3:], given[3:]) == ([4], [None])


def test_what_cannot_be_captured_at_all_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = list[int]()

    def capture(*_: Any) -> Any:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(module, "capture", capture)
    graphed = CudaGraphed(lambda lines: lines * 2, padding=9)
    for which in ([1], [1, 2]):
        assert graphed(which, CPU).tolist() == [2 * line for line in which]
    assert (len(tried), graphed.disabled) == (1, True)
    assert "cannot be captured" in caplog.text


def quick(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
    """Graphs are recorded, and one that gives n times its lines takes so long."""

    def capture(function: Callable[[], torch.Tensor], device: torch.device, memory: Any) -> Any:
        graph = Recorded(function)
        return graph, graph.out, graph.out.clone()

    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(module, "timed", lambda graph, device: seconds[int(graph.out[0]) // 9])


def twice(lines: torch.Tensor) -> torch.Tensor:
    return lines * 2


def thrice(lines: torch.Tensor) -> torch.Tensor:
    return lines * 3


@pytest.mark.parametrize(("others", "taken"), [(0.0015, 3), (0.0019, 3), (0.00198, 2), (0.0030, 2)])
def test_a_batch_size_takes_the_kernels_that_are_quicker(
    monkeypatch: pytest.MonkeyPatch, others: float, taken: int
) -> None:
    """And the first ones where that is not clear, so that two starts do not differ by chance."""
    quick(monkeypatch, {2: 0.002, 3: others})
    graphed = CudaGraphed(twice, Other(thrice), padding=9)
    assert graphed([9], CPU).tolist() == [9 * taken]


def test_kernels_that_do_not_run_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for all batch sizes, and without harm to the first ones."""
    calls = list[int]()

    def broken(lines: torch.Tensor) -> torch.Tensor:
        calls.append(len(lines))
        raise ValueError("no such instruction")

    quick(monkeypatch, {2: 0.002, 3: 0.001})
    works = Other(thrice)
    graphed = CudaGraphed(twice, Other(broken), works, padding=9)
    assert graphed([9], CPU).tolist() == [27]
    assert graphed([9, 9], CPU).tolist() == [27, 27]
    assert (calls, graphed.disabled, graphed.others) == ([1], False, [works])
    assert "left out" in caplog.text


def test_one_kind_alone_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, {})
    assert CudaGraphed(twice, padding=9)([9], CPU).tolist() == [18]


def test_kernels_for_few_streams_are_tried_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, {2: 0.002, 3: 0.001})
    graphed = CudaGraphed(twice, Other(thrice, up_to=16), padding=9)
    for count, times in ((16, 3), (24, 2)):
        assert graphed([9] * count, CPU).tolist() == [9 * times] * count


def test_kernels_without_memory_are_tried_with_the_next_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(lines: torch.Tensor) -> torch.Tensor:
        if len(lines) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lines * 3

    quick(monkeypatch, {2: 0.002, 3: 0.001})
    graphed = CudaGraphed(twice, Other(full), padding=9)
    assert (graphed([9], CPU).tolist(), graphed([9, 9], CPU).tolist()) == ([18], [27, 27])
