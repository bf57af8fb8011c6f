"""Streams of a step's own: each has blocks of its own, and autograd follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.estimated_calls import CALLS

from vramkit.errors import UntraceableError
from vramkit.estimate import estimate, find_target
from vramkit.estimate._fake_device import fake_device
from vramkit.estimate._recorder import Phase, Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")
_MIB = 1 << 20


def _traced(make_step: Callable[[], Callable[[], Any]], steps: int = 1) -> Trace:
    return trace(make_step, target=_H100, steps=steps)


def _two_layers(*, aside: bool = True) -> Callable[[], Callable[[], None]]:
    """The second layer runs on a stream of its own."""

    def make_step() -> Callable[[], None]:
        first, second = (torch.nn.Linear(256, 256, device="cuda") for _ in range(2))
        x = torch.randn(32, 256, device="cuda")
        stream = torch.cuda.Stream() if aside else torch.cuda.current_stream()

        def step() -> None:
            hidden = first(x)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                out = second(hidden)
            torch.cuda.current_stream().wait_stream(stream)
            out.square().sum().backward()

        return step

    return make_step


def test_blocks_belong_to_the_stream_that_is_current() -> None:
    found = _traced(_two_layers())
    products = [each for each in found.blocks if each.operator == "aten::addmm"]
    assert [each.stream for each in products] == [0, 1]


def test_the_backward_pass_runs_on_the_streams_of_the_forward_pass() -> None:
    found = _traced(_two_layers())
    gradients = [each for each in found.blocks if each.operator == "aten::mm"]
    assert [each.phase for each in gradients] == [Phase.BACKWARD] * 3
    assert [each.stream for each in gradients] == [1, 1, 0]


def test_each_stream_has_a_workspace_of_its_own() -> None:
    aside, together = (_traced(_two_layers(aside=aside)) for aside in (True, False))
    for found, count in ((aside, 4), (together, 2)):
        kept = [each for each in found.blocks if each.operator == "cuBLAS"]
        assert len(kept) == count
        assert len({(each.phase, each.stream) for each in kept}) == count


def test_memory_is_not_shared_by_streams() -> None:
    def make(aside: bool) -> Callable[[], Callable[[], None]]:
        def make_step() -> Callable[[], None]:
            stream = torch.cuda.Stream() if aside else None

            def step() -> None:
                torch.empty(64 * _MIB, dtype=torch.uint8, device="cuda")
                with torch.cuda.stream(stream):
                    torch.empty(64 * _MIB, dtype=torch.uint8, device="cuda")

            return step

        return make_step

    together, aside = (estimate(step=make(aside), steps=1) for aside in (False, True))
    assert together.peak_allocated_bytes == aside.peak_allocated_bytes == 64 * _MIB
    for allocator in ("native", "expandable"):
        alone = together.reserved_bytes[allocator]
        assert 64 * _MIB <= alone < 128 * _MIB
        assert aside.reserved_bytes[allocator] == 2 * alone


@pytest.mark.parametrize("recorded", [False, True])
def test_what_another_stream_uses_widens_the_interval(recorded: bool) -> None:
    def make_step() -> Callable[[], None]:
        stream = torch.cuda.Stream()

        def step() -> None:
            for _ in range(2):
                block = torch.empty(8 * _MIB, dtype=torch.uint8, device="cuda")
                block.record_stream(stream if recorded else torch.cuda.current_stream())
                del block

        return step

    found = estimate(step=make_step)
    assert found.reserved_bytes["native"] == 20 * _MIB
    widened = found.device_high_bytes - found.reserved_bytes["native"] - _H100.outside_high_bytes
    assert widened == (16 * _MIB if recorded else 0)
    assert ("record_stream() was called, up to 16.0 MiB in a step" in str(found)) == recorded


def test_streams_are_compared_entered_and_set() -> None:
    with fake_device(_H100):
        first, second = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
        assert first != second
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        with first:
            assert torch.cuda.current_stream() == first
            assert torch.cuda.default_stream() != first
            with torch.cuda.stream(second), torch.cuda.stream(None):
                assert torch.cuda.current_stream() == second
            with torch.cuda.StreamContext(second):
                assert torch.cuda.current_stream().cuda_stream == second.stream_id
        torch.cuda.set_stream(second)
        assert len({torch.cuda.current_stream(), second, first}) == 2
        assert isinstance(torch.cuda.current_stream(), torch.cuda.Stream)
        assert second.record_event().query()
        assert second.device == torch.device("cuda:0")
        assert "device=cuda:0 cuda_stream=0x21" in repr(second)
    with fake_device(_H100):
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_streams_are_given_out_in_turn() -> None:
    with fake_device(_H100):
        streams = [torch.cuda.Stream() for _ in range(33)]
        assert len(set(streams)) == 32
        assert streams[32] == streams[0]
        assert torch.cuda.Stream(priority=-1) not in streams


def test_streams_of_any_device_are_refused() -> None:
    with pytest.raises(UntraceableError, match=r"test_streams\.py:\d+.* use torch\.cuda\.Stream"):
        _traced(lambda: lambda: torch.Stream(device="cuda"))


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("streams ")])
def test_the_calls_that_a_gpu_is_to_record(name: str) -> None:
    make_step, steps = CALLS[name]
    found = _traced(make_step, steps)
    assert {each.stream for each in found.blocks} == {0, 1}
    assert found.unknown == ()
