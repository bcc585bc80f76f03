"""The other environment is asked once; a run without it fails and says how to set it up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.parity.kit import Asked, ask


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return ask(tmp_path_factory.mktemp("parity"))
