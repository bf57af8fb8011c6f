"""Copies of strided inputs and gradients are those that an H200's allocator was asked for.

``strided-operators-h200.json`` is what ``scripts/record_operators.py strided`` recorded (torch
2.11.0+cu130).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.recorded_calls import CASES_A_TRACE, estimated
from helpers.strided_operators import STRIDED

from vramkit.estimate import find_target

_RECORDED: dict[str, dict[str, list[int]]] = json.loads(
    Path(__file__).with_name("strided-operators-h200.json").read_text(encoding="utf-8")
)
_H200 = find_target("h200")
# Not known, refused, or another way on a GPU, as test_swept_operators.py shows.
_ELSEWHERE = ("affine grid", "fft", "fft2", "stft", "quantize", "prod", "atan2")
# Rare, and not followed for these layouts.
_DIFFERENT = {
    *("rrelu", "renorm", "batch_norm", "view as windows"),
    *("elu (turned)", "selu (turned)", "softplus (turned)", "hardswish (turned)"),
    *("logit (turned)", "glu (channels-last)", "max_pool3d (batch last)"),
}


def _name_of(case: str) -> str:
    return case.rpartition(" (")[0]


_COMPARED = [
    case
    for case in _RECORDED
    if case not in _DIFFERENT and _name_of(case) not in (*_ELSEWHERE, *_DIFFERENT)
]
_PARTS = [
    _COMPARED[begin : begin + CASES_A_TRACE] for begin in range(0, len(_COMPARED), CASES_A_TRACE)
]


def test_every_call_is_recorded() -> None:
    # Those two need a view that such strides do not allow.
    missing = {"channel_shuffle (transposed)", "channel_shuffle (turned)"}
    assert set(STRIDED) == set(_RECORDED) | missing
    assert {_name_of(case) for case in STRIDED}.issuperset(_ELSEWHERE)
    assert {*STRIDED, *map(_name_of, STRIDED)} >= _DIFFERENT


@pytest.mark.parametrize("cases", _PARTS, ids=[part[0] for part in _PARTS])
def test_calls_allocate_what_was_recorded(cases: list[str]) -> None:
    chosen = {case: STRIDED[case] for case in cases}
    for case, way, sizes in estimated(chosen, _RECORDED, _H200):
        assert sizes == _RECORDED[case][way], (case, way)
