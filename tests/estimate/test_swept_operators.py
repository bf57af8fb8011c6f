"""What calls allocate is what an H200's allocator was asked for, block by block.

``swept-operators-h200.json`` is what ``scripts/record_operators.py`` recorded (torch 2.11.0+cu130).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.phases import changes_inside, trace_call
from helpers.recorded_calls import CASES_A_TRACE, estimated
from helpers.swept_operators import SWEPT

from vramkit.errors import UntraceableError
from vramkit.estimate import find_target

_RECORDED: dict[str, dict[str, list[int]]] = json.loads(
    Path(__file__).with_name("swept-operators-h200.json").read_text(encoding="utf-8")
)
_H200 = find_target("h200")
# Fakes take another way than a GPU, which asks the data.
_OTHER_WAY = ("bilinear", "corrcoef", "cov", "multi_margin")
_OTHER_WAY_BACK = ("prod", "put", "bce", "bce logits")
# C++ leaves the order of arguments to the compiler.
_OTHER_ORDER = ("logcumsumexp", "pdist", "atan2")
_UNKNOWN = ("affine grid", "fft", "fft2", "stft", "cdist 1", "cdist exact")
_REFUSED = ("quantize",)


def _name_of(case: str) -> str:
    return case.partition(" (")[0]


_COMPARED = [case for case in SWEPT if _name_of(case) not in (*_OTHER_WAY, *_UNKNOWN, *_REFUSED)]
_PARTS = [
    _COMPARED[begin : begin + CASES_A_TRACE] for begin in range(0, len(_COMPARED), CASES_A_TRACE)
]


def test_every_call_is_recorded() -> None:
    assert set(SWEPT) == set(_RECORDED)
    known = {_name_of(case) for case in SWEPT}
    excepted = (*_OTHER_WAY, *_OTHER_WAY_BACK, *_OTHER_ORDER, *_UNKNOWN, *_REFUSED)
    assert known.issuperset(excepted)


@pytest.mark.parametrize("cases", _PARTS, ids=[part[0] for part in _PARTS])
def test_calls_allocate_what_was_recorded(cases: list[str]) -> None:
    chosen = {case: SWEPT[case] for case in cases}
    for case, way, sizes in estimated(chosen, _RECORDED, _H200):
        _compare(case, way, sizes)


def _compare(case: str, way: str, sizes: list[int]) -> None:
    name, recorded = _name_of(case), _RECORDED[case][way]
    if way == "bwd" and name in _OTHER_WAY_BACK:
        return
    if name in _OTHER_ORDER:
        assert _peak(sizes) == _peak(recorded), (case, way)
        return
    assert sizes == recorded, (case, way)


def _peak(sizes: list[int]) -> int:
    return max(itertools.accumulate(sizes, initial=0))


@pytest.mark.parametrize("case", _UNKNOWN)
def test_what_is_not_known_is_named(case: str) -> None:
    ways = [trace_call(SWEPT[case], _H200, trained=True, backward=way) for way in (False, True)]
    assert any(found.unknown for found in ways)


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(UntraceableError, match="fake_quantize"):
        trace_call(SWEPT["quantize"], _H200, trained=True, backward=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.flatten()[:0].multinomial(1),
        lambda x: x.flatten()[:0].sort()[0],
        lambda x: x.flatten()[:0].topk(0)[0],
        lambda _: torch.randperm(0, device="cuda"),
        lambda x: x.sum().sort()[0],
        lambda x: x.sum().cumsum(0),
        lambda x: x.mT.sort(0)[0],
    ],
)
def test_empty_and_single_elements_are_followed(call: Callable[[Any], Any]) -> None:
    found = trace_call(
        lambda: (call, (torch.ones(3, 4, device="cuda"),)), _H200, trained=True, backward=False
    )
    assert _peak(changes_inside(found)) < 1000
