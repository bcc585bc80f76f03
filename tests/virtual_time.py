"""An event loop whose time is the tests': what sleeps takes none, and a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Does not wait: when nothing is ready, the clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.threads = 0
        """Calls that run in threads: time stands still for them."""

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.threads:
            return super().select(timeout and 0.001)
        self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self._virtual.threads += 1

        def done(_: object) -> None:
            self._virtual.threads -= 1

        future.add_done_callback(done)
        return future


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on virtual time, and hold it to leaving no task behind."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def whole() -> None:
            before = asyncio.all_tasks()
            await test(*args, **kwargs)
            await no_more_tasks_than(before)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(whole())
        # The framework leaves failed tasks of its own to the collector, which reports them. Doing that while Python parses
        # source text trips CPython 3.11 (the report parses too), so it is done here.
        gc.collect()

    return run


async def no_more_tasks_than(before: set[asyncio.Task[Any]]) -> None:
    """Fails when a task is left after a moment for what is ending."""
    for _ in range(100):
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks are left: {left}")
