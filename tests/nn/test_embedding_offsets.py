"""Tables on the CPU read no memory beyond their own, whatever becomes of the offsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vramkit.errors import InvalidArgumentError
from vramkit.nn import SparseEmbeddingBag


@pytest.mark.parametrize("changed", [[0, 1 << 40], [3, 0], [-5, 2]])
def test_offsets_that_are_changed_where_torch_does_not_see_it(changed: list[int]) -> None:
    ids, offsets = torch.tensor([1, 2, 3, 4]), np.array([0, 2])
    weights = torch.ones(4, requires_grad=True)
    bag = SparseEmbeddingBag(9, 4, mode="sum", optimizer="sgd")
    for given in (None, weights):
        offsets[:] = 0, 2
        output = bag(ids, torch.from_numpy(offsets), given)
        offsets[:] = changed
        with pytest.raises(InvalidArgumentError, match="offsets have been changed between forward"):
            output.sum().backward()
