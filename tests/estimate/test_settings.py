"""What programs set for the whole process ends with the trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import vramkit
from vramkit.estimate._settings import settings_kept

_BACKENDS = torch.backends
_NEW = "ignore:Please use the new API"


def _estimate(change: Callable[[], object]) -> None:
    def make_step() -> Callable[[], object]:
        change()
        x = torch.randn(4, 4, device="cuda")
        return lambda: x @ x

    vramkit.estimate(step=make_step, steps=1)


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """Other tests see none of it."""
    with settings_kept():
        yield


def test_settings_of_tensors() -> None:
    def change() -> None:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        torch.set_default_device("cuda")
        torch.autograd.set_detect_anomaly(True)
        torch.set_num_threads(1)

    before = torch.get_num_threads()
    _estimate(change)
    assert torch.get_default_dtype() is torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    assert torch.ones(2).device.type == "cpu"
    assert not torch.is_anomaly_enabled()
    assert torch.get_num_threads() == before


def _precisions() -> dict[str, str]:
    places = {"all": _BACKENDS, "matmul": _BACKENDS.cuda.matmul, "cudnn": _BACKENDS.cudnn}
    places |= {"conv": _BACKENDS.cudnn.conv, "rnn": _BACKENDS.cudnn.rnn}
    places["mkldnn"] = _BACKENDS.mkldnn.matmul
    return {name: place.fp32_precision for name, place in places.items()}


@pytest.mark.filterwarnings(_NEW)
def test_precisions_by_the_older_interface() -> None:
    def change() -> None:
        _BACKENDS.cuda.matmul.allow_tf32 = True
        _BACKENDS.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("medium")
        _BACKENDS.cudnn.benchmark = True
        _BACKENDS.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    before = _precisions()
    _estimate(change)
    assert torch.get_float32_matmul_precision() == "highest"
    assert _BACKENDS.cudnn.allow_tf32
    assert not _BACKENDS.cudnn.benchmark
    assert _BACKENDS.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert _precisions() == before


@pytest.mark.filterwarnings(_NEW)
def test_precisions_by_the_newer_interface() -> None:
    def change() -> None:
        _BACKENDS.fp32_precision = "tf32"
        _BACKENDS.cudnn.conv.fp32_precision = "ieee"

    before = _precisions()
    _estimate(change)
    assert _precisions() == before
    _BACKENDS.cuda.matmul.fp32_precision = "tf32"
    before = _precisions()
    _estimate(lambda: None)
    assert _precisions() == before


def test_kernels_of_attention() -> None:
    def change() -> None:
        _BACKENDS.cuda.enable_flash_sdp(False)
        _BACKENDS.cuda.enable_mem_efficient_sdp(False)
        _BACKENDS.cuda.enable_cudnn_sdp(False)

    _estimate(change)
    assert _BACKENDS.cuda.flash_sdp_enabled()
    assert _BACKENDS.cuda.mem_efficient_sdp_enabled()
    assert _BACKENDS.cuda.cudnn_sdp_enabled()


def test_autocast() -> None:
    def change() -> None:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)

    _estimate(change)
    assert not torch.is_autocast_enabled("cuda")
    assert torch.get_autocast_dtype("cuda") is torch.float16


def test_random_numbers_go_on() -> None:
    def numbers() -> list[Any]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    def seed() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    expected = [numbers(), numbers()]
    seed()
    assert numbers() == expected[0]
    _estimate(seed)
    assert numbers() == expected[1]
