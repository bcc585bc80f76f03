"""Python's garbage collector beside a loaded model.

torch, transformers and a loaded model are some hundred thousand objects that stay. Now and then the collector looks at all of them, and
every thread of the process stands still meanwhile: for 0.17 s on the machine of docs/benchmarks.md, which is longer than what a caller has
left to hear just after the first sound.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def settled() -> Generator[None]:
    """What is there now is not looked at inside: for whoever owns the process, once the engine runs. The collector goes on with what
    comes later. What is there now and is dropped inside in a cycle is freed afterwards."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
