"""What a model is called with, and samples that are refused."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch

import vramkit
from vramkit.errors import ArgumentTypeError, UntraceableError


class _Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(4, 64))

    def forward(self, count: int = 2) -> torch.Tensor:
        return self.weight * count


@pytest.mark.parametrize("model", [torch.nn.Linear(4, 4), lambda: torch.nn.Linear(4, 4)])
def test_a_missing_sample_is_refused_where_it_is_needed(model: Any) -> None:
    text = "sample_input is missing, and the forward of Linear needs input; pass a tensor"
    with pytest.raises(ArgumentTypeError, match=text):
        vramkit.estimate(model)


def test_a_model_without_arguments_needs_no_sample() -> None:
    found = vramkit.estimate(_Own(), train=True)
    assert found.peak.by_kind["parameters"] == 4 * 64 * 4
    assert found.parameters == 4 * 64


@pytest.mark.parametrize("shape", [(4, 64), [4, 64], torch.Size((4, 64))])
def test_a_shape_is_no_sample(shape: Any) -> None:
    text = r"of integers, \(4, 64\); .* pass torch\.empty\(4, 64\)"
    with pytest.raises(ArgumentTypeError, match=text):
        vramkit.estimate(torch.nn.Linear(64, 64), shape)


@pytest.mark.parametrize("sample", [np.zeros(3), (np.zeros(3),), {"input": [np.zeros(3)]}])
def test_arrays_are_no_samples(sample: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"NumPy array; .* torch\.from_numpy\(array\)"):
        vramkit.estimate(torch.nn.Linear(3, 3), sample)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_numbers_are_no_tensors(kind: type[Any]) -> None:
    sample = kind({"input": [[1, 2, 3], [4, 5, 6]]})
    with pytest.raises(ArgumentTypeError, match=r"lists of numbers .* return_tensors='pt'"):
        vramkit.estimate(torch.nn.Embedding(8, 3), sample)


def test_another_mapping_holds_keyword_arguments_too() -> None:
    model, sample = torch.nn.Linear(4, 4), {"input": torch.empty(8, 4)}
    found = vramkit.estimate(model, UserDict(sample), optimizer="sgd")
    by_name = vramkit.estimate(model, sample, optimizer="sgd")
    assert found.peak_requested_bytes == by_name.peak_requested_bytes
    changed = found.advice(found.device_bytes + 1)
    assert not changed.failed


def test_tuples_are_positional_and_dicts_keyword_arguments() -> None:
    model, x = torch.nn.Bilinear(8, 16, 4), (torch.empty(2, 8), torch.empty(2, 16))
    positional = vramkit.estimate(model, x)
    by_name = vramkit.estimate(model, {"input1": x[0], "input2": x[1]})
    assert positional.peak_requested_bytes == by_name.peak_requested_bytes > 0


def test_values_of_a_large_mask_are_known() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x * 2 if mask.all() else x

    mask = torch.ones(32, 8192, dtype=torch.long)
    found = vramkit.estimate(Masked(), {"x": torch.empty(4), "mask": mask}, steps=1)
    assert found.guesses == {}
    with pytest.raises(UntraceableError, match="reads a value that depends on the data"):
        vramkit.estimate(Masked(), {"x": torch.empty(4), "mask": mask.repeat(8, 1)}, steps=1)
