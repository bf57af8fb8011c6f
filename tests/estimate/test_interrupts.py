"""Ctrl-C while a step is traced."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import vramkit

_DONE: list[str] = []


def _of_a_library(source: str) -> Callable[[], None]:
    """A function that seems to be PyTorch's."""
    names: dict[str, Any] = {"signal": signal, "done": _DONE}
    exec(compile(f"def run():\n {source}", torch.__file__, "exec"), names)
    made: Callable[[], None] = names["run"]
    return made


_interrupted = _of_a_library("signal.raise_signal(signal.SIGINT); done.append('library')")
_interrupted_twice = _of_a_library(
    "[signal.raise_signal(signal.SIGINT) for _ in '12']; done.append('library')"
)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises, as in a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    _DONE.clear()
    yield
    signal.signal(signal.SIGINT, before)


def _estimate(interrupt: Callable[[], None]) -> None:
    def make_step() -> Callable[[], None]:
        x = torch.ones(8, device="cuda")

        def step() -> None:
            interrupt()
            _DONE.append("step")
            x.add(1)
            _DONE.append("operator")

        return step

    vramkit.estimate(step=make_step)


def _raise() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("interrupt", "done"),
    [(_interrupted, ["library", "step"]), (_interrupted_twice, []), (_raise, [])],
)
def test_it_waits_for_the_end_of_other_code(interrupt: Callable[[], None], done: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _estimate(interrupt)
    assert done == _DONE
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert type(torch.ones(1)) is torch.Tensor
    assert not torch._C._len_torch_dispatch_stack()


def test_it_takes_effect_at_the_end_at_the_latest() -> None:
    with pytest.raises(KeyboardInterrupt):
        vramkit.estimate(
            step=lambda: lambda: torch.ones(8, device="cuda"),
            progress=lambda done, total: _interrupted() if done == total else None,
        )
    assert _DONE == ["library"]


def test_other_handlers_stay() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _estimate(_interrupted)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_leave_the_handler_alone() -> None:
    thread = threading.Thread(target=_estimate, args=(lambda: None,))
    thread.start()
    thread.join()
    assert _DONE == ["step", "operator"] * 3
