"""What operators allocate inside is what an H100's allocator was asked for, in that order.

``operators-h100.json`` holds recorded cases: each block taken (+) and dropped (-) between the call
of an operator and its return, the results included (torch 2.11.0+cu130).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.phases import Case, changes_inside, trace_call
from torch.nn import functional

import vramkit._ops  # noqa: F401 - defines its operators
from vramkit.estimate import find_target
from vramkit.estimate._ops import RULES, is_unknown
from vramkit.estimate._ops._attention import Attention, choose

_RECORDED = json.loads(Path(__file__).with_name("operators-h100.json").read_text(encoding="utf-8"))
_H100 = find_target("h100")
_BF16, _F32 = torch.bfloat16, torch.float32

_FORWARD: dict[str, Case] = {}
_TRAINED: dict[str, Case] = {}


def _tensor(*shape: int, dtype: torch.dtype = _F32, grad: bool = True, cl: bool = False) -> Any:
    made = torch.empty(shape, dtype=dtype, device="cuda")
    if cl:
        made = made.contiguous(memory_format=torch.channels_last)
    return made.requires_grad_(grad)


def _sum_case(shape: tuple[int, ...], dims: tuple[int, ...], dtype: Any, *, cl: bool) -> Case:
    return lambda: (lambda x: x.sum(dims), (_tensor(*shape, dtype=dtype, grad=False, cl=cl),))


for _shape, _dims, _dtype, _cl in (
    ((12608, 768), (0,), _BF16, False),
    ((8192, 3072), (0,), _F32, False),
    ((4096, 4096), (1,), _F32, False),
    ((32, 64, 224, 224), (0, 2, 3), _BF16, False),
    ((64, 256, 56, 56), (0, 2, 3), _BF16, True),
    ((64, 2048, 7, 7), (2, 3), _BF16, True),
    ((67108864,), (0,), _F32, False),
    ((3, 4194304), (1,), _F32, False),
    ((4194304, 3), (0,), _F32, False),
):
    _name = f"sum {_shape} over {_dims} {str(_dtype)[6:]}{' cl' if _cl else ''}"
    _FORWARD[_name] = _sum_case(_shape, _dims, _dtype, cl=_cl)

for _name, _function in {
    "mean": lambda x: x.mean(0),
    "amax": lambda x: x.amax(0),
    "var": lambda x: x.var(0),
    "argmax": lambda x: x.argmax(0),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=0),
    "prod": lambda x: x.prod(0),
    "logsumexp": lambda x: x.logsumexp(0),
}.items():
    _FORWARD[f"{_name} (32768, 1024) over 0 float32"] = lambda function=_function: (
        function,
        (_tensor(32768, 1024, grad=False),),
    )


def _layer_norm(rows: int, width: int, dtype: torch.dtype) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x, w, b = (_tensor(*s, dtype=dtype) for s in ((rows, width), (width,), (width,)))
        return lambda x, w, b: functional.layer_norm(x, (width,), w, b), (x, w, b)

    return make


_TRAINED["layer_norm (8192, 768) float32"] = _layer_norm(8192, 768, _F32)
_TRAINED["layer_norm (131072, 96) float32"] = _layer_norm(131072, 96, _F32)
_TRAINED["layer_norm (262144, 256) bfloat16"] = _layer_norm(262144, 256, _BF16)
_TRAINED["group_norm (32, 256, 56, 56) float32"] = lambda: (
    lambda x, w, b: functional.group_norm(x, 32, w, b),
    (_tensor(32, 256, 56, 56), _tensor(256), _tensor(256)),
)


def _batch_norm(shape: tuple[int, ...], dtype: torch.dtype, *, cl: bool) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        mean, var = _tensor(shape[1], grad=False), _tensor(shape[1], grad=False)
        inputs = (_tensor(*shape, dtype=dtype, cl=cl), _tensor(shape[1]), _tensor(shape[1]))
        return lambda x, w, b: functional.batch_norm(x, mean, var, w, b, True), inputs

    return make


_TRAINED["batch_norm (64, 256, 56, 56) bfloat16 cl"] = _batch_norm(
    (64, 256, 56, 56), _BF16, cl=True
)
_TRAINED["batch_norm (32, 64, 112, 112) float32 nchw"] = _batch_norm(
    (32, 64, 112, 112), _F32, cl=False
)


def _attention(sizes: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Case:
    batch, heads, key_heads, length, width, value_width = sizes

    def attend(q: Any, k: Any, v: Any) -> Any:
        parts = (part.transpose(1, 2) for part in (q, k, v))
        return functional.scaled_dot_product_attention(*parts, **options)

    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        shapes = ((heads, width), (key_heads, width), (key_heads, value_width))
        return attend, tuple(_tensor(batch, length, h, w, dtype=dtype) for h, w in shapes)

    return make


for _label, _sizes, _dtype, _options in (
    ("cudnn", (64, 12, 12, 197, 64, 64), _BF16, {}),
    ("cudnn dropout", (8, 12, 12, 1024, 64, 64), _BF16, {"dropout_p": 0.1, "is_causal": True}),
    ("cudnn gqa", (4, 12, 4, 1024, 128, 128), _BF16, {"is_causal": True, "enable_gqa": True}),
    ("192/128", (4, 16, 16, 1024, 192, 128), _BF16, {"is_causal": True}),
    ("fp32", (8, 12, 12, 1024, 64, 64), _F32, {"is_causal": True}),
    ("bf16 d256", (2, 8, 8, 1024, 256, 256), _BF16, {"is_causal": True}),
):
    _name = f"sdpa {_label} {_sizes} {str(_dtype)[6:]} {_options}"
    _TRAINED[_name] = _attention(_sizes, _dtype, **_options)


def _masked(mask_shape: tuple[int, ...], dtype: torch.dtype, *, learns: bool) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        mask = _tensor(*mask_shape, dtype=dtype, grad=learns)
        parts = tuple(_tensor(8, 12, 512, 64, dtype=_BF16) for _ in range(3))
        if learns:
            return functional.scaled_dot_product_attention, (*parts, mask)
        return lambda *p: functional.scaled_dot_product_attention(*p, mask), parts

    return make


_TRAINED["sdpa mask bfloat16"] = _masked((8, 1, 512, 512), _BF16, learns=False)
_TRAINED["sdpa bool mask bfloat16"] = _masked((8, 1, 512, 512), torch.bool, learns=False)
_TRAINED["sdpa bias that needs grad bfloat16"] = _masked((1, 12, 512, 512), _BF16, learns=True)


def _embedding(count: int, rows: int, width: int, dtype: torch.dtype) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        indices = torch.arange(count, device="cuda") % rows
        return lambda w: functional.embedding(indices, w), (_tensor(rows, width, dtype=dtype),)

    return make


_TRAINED["embedding 8192 of (50257, 768) float32"] = _embedding(8192, 50257, 768, _F32)
_TRAINED["embedding 4096 of (32000, 1536) bfloat16"] = _embedding(4096, 32000, 1536, _BF16)
_TRAINED["embedding 1024 of (1024, 768) float32"] = _embedding(1024, 1024, 768, _F32)


def _indexed() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    indices = torch.arange(32768, device="cuda") % 16384
    return lambda x: x[indices], (_tensor(16384, 1024, dtype=_BF16),)


_TRAINED["index (16384, 1024) by 32768"] = _indexed
_TRAINED["softmax (8192, 4096) bfloat16"] = lambda: (
    lambda x: x.softmax(-1),
    (_tensor(8192, 4096, dtype=_BF16),),
)
_TRAINED["amax (8192, 4096) bfloat16"] = lambda: (
    lambda x: x.amax(-1),
    (_tensor(8192, 4096, dtype=_BF16),),
)


def _loss(function: Callable[..., Any]) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        target = _tensor(4096, 4096, grad=False)
        return lambda x: function(x, target), (_tensor(4096, 4096),)

    return make


_TRAINED["mse loss (4096, 4096)"] = _loss(functional.mse_loss)
_TRAINED["l1 loss (4096, 4096)"] = _loss(functional.l1_loss)
_TRAINED["smooth_l1 loss (4096, 4096)"] = _loss(functional.smooth_l1_loss)
_TRAINED["bce loss (4096, 4096)"] = _loss(functional.binary_cross_entropy_with_logits)


def recorded_by(make: Case, *, trained: bool, backward: bool) -> list[int]:
    """Trace the forward or the backward pass; returns blocks taken (+) and dropped (-)."""
    return changes_inside(trace_call(make, _H100, trained=trained, backward=backward))


@pytest.mark.parametrize("name", _FORWARD)
def test_what_is_allocated_without_gradients(name: str) -> None:
    recorded = _RECORDED[name]
    found = recorded_by(_FORWARD[name], trained=False, backward=False)
    assert found[: len(recorded)] == recorded


@pytest.mark.parametrize("way", ["fwd", "bwd"])
@pytest.mark.parametrize("name", _TRAINED)
def test_what_is_allocated_in_training(name: str, way: str) -> None:
    recorded = _RECORDED[f"{name} {way}"]
    found = recorded_by(_TRAINED[name], trained=True, backward=way == "bwd")
    assert found[: len(recorded)] == recorded


def test_every_recorded_case_is_tried() -> None:
    cases = {*_FORWARD, *(f"{name} {way}" for name in _TRAINED for way in ("fwd", "bwd"))}
    assert cases == set(_RECORDED)


def test_a_measured_convolution_takes_what_was_measured() -> None:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        inputs = (_tensor(32, 64, 56, 56), _tensor(64, 64, 3, 3))
        return lambda x, w: functional.conv2d(x, w, padding=1), inputs

    found = recorded_by(make, trained=True, backward=True)
    assert found[:6] == [25690112, 51527696, -51527696, 147456, 53592743, -53592743]


def test_rules_name_operators_that_exist() -> None:
    for name in RULES:
        library, _, operator = name.partition("::")
        packet, _, overload = operator.partition(".")
        getattr(getattr(getattr(torch.ops, library), packet), overload or "default")


def test_no_operator_is_both_known_and_unknown() -> None:
    assert [name for name in RULES if is_unknown(name)] == []


@pytest.mark.parametrize(
    ("name", "dtype", "kernel"),
    [
        ("h100", torch.bfloat16, "cudnn"),
        ("a100-80gb", torch.bfloat16, "flash"),
        ("l4", torch.float32, "efficient"),
        ("t4", torch.float16, "efficient"),
        ("t4", torch.bfloat16, "math"),
        ("h100", torch.float64, "math"),
    ],
)
def test_attention_s_kernel_depends_on_the_gpu(name: str, dtype: Any, kernel: str) -> None:
    part = torch.empty(2, 8, 128, 64, dtype=dtype, device="meta")
    assert choose(find_target(name), Attention(part, part, part, None, 0.0, True)) == kernel
