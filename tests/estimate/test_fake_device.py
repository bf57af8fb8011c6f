"""The pretended CUDA device: there inside the scope, gone outside."""

from __future__ import annotations

import ctypes

import pytest
import torch
from helpers.pools import run_script

from vramkit import _build
from vramkit.errors import NativeLibraryError, ScopeError, UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._fake_device import _self_test, fake_device
from vramkit.estimate._scope import tracing
from vramkit.estimate._tracer import Tracer

_H100 = find_target("h100")


def _native() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_build.adapter_path("fake")))
    library.vramkit_fake_answers.restype = ctypes.c_uint32
    return library


def test_autocast_and_backward_run_on_fakes() -> None:
    with tracing(Tracer(_H100, "refuse"), _H100, lambda: None):
        layer = torch.nn.Linear(8, 8, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(torch.ones(4, 8, device="cuda"))
        out.float().sum().backward()
        assert out.dtype == torch.bfloat16
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == torch.device("cuda:0")


def test_torch_is_told_of_the_target() -> None:
    with fake_device(_H100):
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_properties().multi_processor_count == 132
        assert not torch.cuda.is_initialized()


def test_events_take_no_time_and_graphs_are_refused() -> None:
    with fake_device(_H100):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        end.record(torch.cuda.current_stream())
        assert start.elapsed_time(end) == 0.0
        with pytest.raises(UntraceableError, match=r"test_fake_device\.py:\d+ uses graphs"):
            torch.cuda.CUDAGraph()
        # Modules that are imported inside the scope annotate with these classes.
        assert torch.cuda.CUDAGraph | None
        assert torch.cuda.Stream | None


def test_everything_is_restored() -> None:
    library, before = _native(), dict(vars(torch.cuda))
    answers = library.vramkit_fake_answers()
    inside = []
    with pytest.raises(ZeroDivisionError), fake_device(_H100):
        inside.append(library.vramkit_fake_answers() // 0)
    with fake_device(_H100):
        inside.append(library.vramkit_fake_answers())
    assert inside == [7]
    assert library.vramkit_fake_answers() == answers
    assert {name: torch.cuda.__dict__[name] for name in before} == before
    weight = torch.ones(3, requires_grad=True)
    weight.sum().backward()
    assert weight.grad is not None


def test_one_scope_at_a_time() -> None:
    refused = pytest.raises(ScopeError, match="run them one by one")
    with fake_device(_H100), refused, fake_device(_H100):
        pass


def test_native_scopes_nest_and_further_leaves_do_nothing() -> None:
    library = _native()
    before = library.vramkit_fake_answers()
    library.vramkit_fake_enter(ctypes.c_int64(0))
    library.vramkit_fake_enter(ctypes.c_int64(91900))
    assert library.vramkit_fake_answers() == 3  # the outermost scope has no cuDNN
    assert library.vramkit_fake_leave() == 1
    assert library.vramkit_fake_leave() == 0
    assert library.vramkit_fake_leave() == 0
    assert library.vramkit_fake_answers() == before


class _Deaf:
    """A library whose device torch does not see."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: 0


def test_the_self_test_sees_a_torch_that_ignores_the_device() -> None:
    with pytest.raises(NativeLibraryError, match=r"does not take .* python -m vramkit\._build"):
        _self_test(_Deaf())  # type: ignore[arg-type]


_FIRST_BACKWARD = """
import os, torch, vramkit

def backward():
    torch.nn.Linear(4, 4)(torch.ones(2, 4)).sum().backward()

with torch.device("meta"):
    vramkit.estimate(torch.nn.Linear(4, 4), torch.ones(2, 4), optimizer="sgd")
backward()
child = os.fork()
if child == 0:
    status = 1
    try:
        torch.set_num_threads(1)  # OpenMP's threads are not in the child
        backward()
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_autograd_knows_the_real_devices_if_its_first_pass_is_in_an_estimate() -> None:
    run_script(_FIRST_BACKWARD)
