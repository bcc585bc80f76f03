"""What stays is left alone by the collector, and what comes later is not."""

from __future__ import annotations

import gc
import weakref

import pytest

from higgs_voice.heap import settled


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_not_looked_at_and_what_comes_is() -> None:
    kept = Node()
    alive = weakref.ref(kept)
    with settled():
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        fresh = weakref.ref(Node())
        del kept
        gc.collect()
        assert fresh() is None
        assert alive() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert alive() is None


def test_an_error_inside_leaves_nothing_frozen() -> None:
    with pytest.raises(ValueError, match="inside"), settled():
        raise ValueError("inside")
    assert gc.get_freeze_count() == 0
