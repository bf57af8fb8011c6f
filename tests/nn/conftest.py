from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vramkit.nn._embedding import _gradients, _table


class EmulatedOperators:
    """The operators of tables on a GPU, which run on the host here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.vramkit, f"emulated_{name}")


@pytest.fixture(scope="module", params=["cpu", "emulated"])
def tables(request: pytest.FixtureRequest) -> Iterator[str]:
    """What tables of the module's tests are made of: the CPU's code, or that of CUDA."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated":
            patch.setattr(_table, "_OPS", EmulatedOperators())
        yield request.param


@pytest.fixture(params=["C++", "Python"])
def lookup_node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The language of the nodes of autograd of tables that are built in the test."""
    if request.param == "Python":
        monkeypatch.setattr(_gradients, "has_native_nodes", lambda: False)
    return str(request.param)
