"""What the functions take for a model, options and a budget, and what they say to anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate.config import (
    Architecture,
    Parallel,
    Serving,
    Training,
    advise,
    count_parameters,
    estimate_serving,
    estimate_training,
    read_model,
    trace_model,
)
from vramkit.estimate.config._results import budget_note

_NAME = "llama-3.2-1b"


def test_every_function_takes_a_name_and_what_was_read() -> None:
    model = read_model(_NAME)
    assert estimate_serving(_NAME).total_bytes == estimate_serving(model).total_bytes
    assert estimate_training(_NAME).total_bytes == estimate_training(model).total_bytes
    assert count_parameters(_NAME) == count_parameters(model)
    assert advise(_NAME, Serving()) == advise(model, Serving())


def test_what_was_read_is_traced_as_its_name_is() -> None:
    model = read_model(_NAME)
    options = Training(parallel=Parallel(data=2))
    for named in (model, _NAME):
        with pytest.raises(InvalidArgumentError, match="a trace is of one GPU, got a layout of 2"):
            trace_model(named, options)
    own = Architecture("mine", "llama", 8, 8, (), tied=True)
    with pytest.raises(InvalidArgumentError, match="mine: an Architecture of your own has no"):
        trace_model(own, Training())


@pytest.mark.parametrize("function", [estimate_serving, estimate_training, advise, trace_model])
def test_options_of_another_kind_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentTypeError, match=r"options must be a \w+, got dict"):
        function(_NAME, {"batch": 3})


def test_the_options_of_the_other_mode_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="must be a Training, got Serving"):
        estimate_training(_NAME, Serving())  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="must be a Serving, got Training"):
        estimate_serving(_NAME, Training())  # type: ignore[arg-type]


def test_json_is_a_text_and_as_dict_its_content() -> None:
    found = estimate_serving(_NAME)
    assert json.loads(found.json()) == json.loads(json.dumps(found.as_dict()))


def test_expert_ranks_that_do_not_divide_name_both_options() -> None:
    ranks = Parallel(tensor=8, pipeline=16, data=8, expert=64)
    with pytest.raises(InvalidArgumentError, match=r"--expert\), .*expert_tensor, --expert-tensor"):
        estimate_training("deepseek-v3", Training(policy="fp8", zero=1, parallel=ranks))


@pytest.mark.parametrize("name", ["./nothing", "../nothing", "~/nothing", "nothing/."])
def test_folders_that_are_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError) as caught:
        read_model(name, hub=False)
    expected = "there is no file or folder" if name[0] in ".~" else "is neither a config.json"
    assert expected in str(caught.value)


def test_a_context_beyond_the_positions_says_so() -> None:
    text = str(estimate_serving(_NAME))
    assert "tokens (the configuration has 131,072 positions) in 75.2 GiB" in text


def test_a_cache_of_windows_has_no_limit() -> None:
    found = estimate_serving("mistral-7b-v0.1")
    text = str(found)
    assert "a further token: 0 bytes (each layer keeps a window or a state of fixed size)" in text
    assert "any number of tokens (the configuration has 32,768 positions)" in text
    assert found.max_context == 32_768


def test_what_gguf_leaves_has_one_dtype() -> None:
    text = str(estimate_serving(_NAME, Serving(weights="Q4_K_M")))
    assert "unquantised: norms, biases and routers (fp32)." in text


@pytest.mark.parametrize("kind", [Serving, Training])
@pytest.mark.parametrize("given", [8, None, {"data": 8}])
def test_a_layout_is_a_parallel(kind: Any, given: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"Parallel\(data=8\), got .* of (int|None|dict)"):
        kind(parallel=given)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Serving(windows="no"), "windows must be True or False, got 'no' of str"),
        (lambda: Serving(weights=None), "weights must be a text, got None of NoneType"),
        (lambda: Serving(utilisation="0.9"), "utilisation must be a number, got '0.9' of str"),
        (lambda: Serving(utilisation=True), "utilisation must be a number, got True of bool"),
        (lambda: Training(flash="no"), "flash must be True or False, got 'no' of str"),
        (lambda: Training(policy=[]), r"policy must be a text, got \[\] of list"),
        (lambda: Training(frozen=4), "frozen must be a text, got 4 of int"),
    ],
)
def test_values_of_another_type(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=text):
        make()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"tensor": None}, "tensor must be an integer from 1 to 1,048,576, got None"),
        ({"stages": 3}, "stages must be a tuple of integers, got 3"),
        ({"stages": ("1",)}, r"stages must be a tuple of integers, got \('1',\)"),
    ],
)
def test_degrees_that_are_no_integers(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        Parallel(**given)


def test_a_text_that_is_no_path() -> None:
    text = r"a text of 4,000 characters that begins with '\{\{.* \(File name too long\)"
    with pytest.raises(InvalidArgumentError, match=text):
        read_model("{" * 4000)


@pytest.mark.parametrize(
    ("target", "budget", "text"),
    [
        ("h100", "rtx4090", "The budget is the memory of rtx4090; all else is estimated for h100"),
        ("h100", "NVIDIA H100", ""),
        ("h100", "24GiB", ""),
        ("h100", None, ""),
    ],
)
def test_a_budget_of_another_gpu_is_told(target: str, budget: str | None, text: str) -> None:
    found = budget_note(target, budget)
    assert found.startswith(text)
    assert bool(found) == bool(text)
