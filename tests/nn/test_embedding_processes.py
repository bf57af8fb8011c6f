"""Tables in processes that are started after them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing import get_context

from vramkit.nn import SparseEmbedding

IDS = torch.tensor([3, 4])


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_new_process_has_the_rows(tmp_path: Path, method: str) -> None:
    table = SparseEmbedding(None, 4, optimizer="adam", dtype=torch.bfloat16, lr=0.5)
    table(IDS).sum().backward()
    path = tmp_path / "table"
    process = get_context(method).Process(target=torch.save, args=(table, path))
    process.start()
    process.join()
    assert process.exitcode == 0
    again = torch.load(path, weights_only=False)
    assert again.lr == 0.5
    for name, value in table.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    again(IDS).sum().backward()
    assert int(again.state_dict()["counters"][0]) == 2
