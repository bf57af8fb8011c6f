"""Options of an estimate that do not exist are refused, and its signature names those that do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import vramkit
from vramkit.errors import ArgumentTypeError


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
