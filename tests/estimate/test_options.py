"""Options of an estimate that do not exist are refused, and its signature names those that do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import vramkit
from vramkit.errors import ArgumentTypeError, InvalidArgumentError


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"optimzer": "adamw"}, "no option 'optimzer'; did you mean optimizer?"),
        ({"trian": True}, "no option 'trian'; did you mean train?"),
        ({"batch": 4}, "no option 'batch'; the options are model, sample_input, step, target"),
        ({"foo": None}, "no option 'foo'; the options are"),
    ],
)
def test_unknown_options_are_refused_by_name(option: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError) as of_model:
        vramkit.estimate(torch.nn.Linear(8, 8), torch.empty(1, 8), **option)
    with pytest.raises(ArgumentTypeError) as of_step:
        vramkit.estimate(step=lambda: lambda: None, **option)
    assert text in str(of_model.value)
    assert str(of_step.value) == str(of_model.value)


def test_the_signature_of_the_module_names_the_options() -> None:
    parameters = inspect.signature(vramkit.estimate).parameters
    assert {"model", "step", "target", "optimizer", "loss", "autocast", "train"} <= set(parameters)
    kinds = {parameter.kind for parameter in parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("budget", ["cuda", "cuda:7", torch.device("cuda"), torch.device("cpu")])
def test_a_device_that_is_not_there_is_no_budget(
    budget: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = vramkit.estimate(torch.nn.Linear(8, 8), torch.empty(1, 8), steps=1)
    with pytest.raises(InvalidArgumentError, match="PyTorch sees 0 CUDA devices here; give a size"):
        found.fits(budget)


def test_a_wrong_shape_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="same reduction dim"):
        vramkit.estimate(torch.nn.Linear(8, 8), torch.empty(1, 9), steps=1)
    assert caplog.records == []
