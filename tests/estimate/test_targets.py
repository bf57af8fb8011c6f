"""GPUs by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate import find_target, targets
from vramkit.estimate._estimate import budget_bytes
from vramkit.estimate.config import _results as of_config


def test_each_target_is_found_by_its_names() -> None:
    for target in targets():
        assert find_target(target.name.upper()) is target
        assert find_target(target.title) is target


def test_what_is_not_measured_says_what_is_assumed() -> None:
    assert [target.name for target in targets() if target.measured] == ["h100", "h200"]
    assert all(target.measured or "assumed" in target.assumed for target in targets())
    assert all(t.outside_low_bytes <= t.outside_bytes <= t.outside_high_bytes for t in targets())


def test_a_target_of_ones_own() -> None:
    own = dataclasses.replace(find_target("h100"), name="own", multi_processors=114)
    assert find_target(own) is own


@pytest.mark.parametrize("name", ["a100", "A100", "NVIDIA A100"])
def test_a_name_of_several_gpus_is_refused(name: str) -> None:
    text = f"'{name}' names GPUs of different memory; use a100-40gb or a100-80gb"
    with pytest.raises(InvalidArgumentError, match=text):
        find_target(name)
    with pytest.raises(InvalidArgumentError, match=text):
        budget_bytes(name)
    with pytest.raises(InvalidArgumentError, match=text):
        of_config.budget_bytes(name)


@pytest.mark.parametrize("name", ["h100", "H100 80GB", "h200", "b200", "l4", "t4", "rtx 4090"])
def test_short_names_of_one_gpu_are_found(name: str) -> None:
    assert find_target(name).name == name.lower().removesuffix(" 80gb").replace(" ", "")


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no GPU named 'voodoo2' is known; known are h"):
        find_target("voodoo2")
    number: Any = 80
    with pytest.raises(ArgumentTypeError, match=r"target must be a name .* got int"):
        find_target(number)
