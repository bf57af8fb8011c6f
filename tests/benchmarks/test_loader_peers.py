"""Peers of the loader's benchmark take part where they can, and the rows say where they do not."""

import contextlib
import multiprocessing
from collections.abc import Generator
from typing import Any

import pytest
import torch

from benchmarks.loader import peers
from benchmarks.loader.cases import python_images
from benchmarks.loader.contest import absence, contest, reason_unfit, running
from benchmarks.loader.contestants import own_loader, torch_loader
from benchmarks.loader.datasets import SmallTensors
from benchmarks.loader.peers import PEERS, Peer
from benchmarks.loader.window import size_of


class FakeStream:
    """Stands for a CUDA stream where there is none, and notes whom it waits for."""

    def __init__(self) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


@pytest.mark.parametrize("make", [own_loader, torch_loader])
def test_epochs_follow_each_other(make: Any) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6))
    with running(make, data, {"batch_size": 4}, on_gpu=False) as batches:
        taken = [next(batches)[0].tolist() for _ in range(3)]
    assert taken == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3]]
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("make", [own_loader, torch_loader])
def test_workers_end_with_their_turn(make: Any) -> None:
    before = {*multiprocessing.active_children()}
    options = {"batch_size": None, "num_workers": 1, "persistent_workers": True}
    with running(make, SmallTensors(2), options, on_gpu=False) as batches:
        next(batches)
        assert {*multiprocessing.active_children()} - before
    assert {*multiprocessing.active_children()} == before


def test_peers_that_need_a_gpu_or_a_package_are_absent() -> None:
    assert PEERS["timm_style"].reason_absent(on_gpu=False) == "needs a GPU"
    assert PEERS["timm_style"].reason_absent(on_gpu=True) is None
    missing = Peer(torch_loader, ("no_such_package", "no_such_package.io"))
    assert missing.reason_absent(on_gpu=True) == "needs no_such_package, which is not installed"


def test_a_peer_that_fails_is_left_out_with_its_error() -> None:
    def broken(*unused: Any, **more: Any) -> Any:
        raise TypeError("unexpected argument")

    data = SmallTensors(2)
    reason = reason_unfit(broken, data, {}, on_gpu=False)
    assert reason == "raises TypeError: unexpected argument"
    assert reason_unfit(torch_loader, data, {"batch_size": None}, on_gpu=False) is None


def test_rows_tell_who_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    case = python_images(2, on_gpu=False)
    makers, absent = contest(case, case.make(), on_gpu=False)
    assert list(makers)[:2] == ["vramkit", "torch"]
    assert {*makers, *absent} == {"vramkit", "torch", "timm_style", "tensordict", "spdl"}
    assert absent["timm_style"] == "needs a GPU"
    assert "without timm_style, which needs a GPU" in capsys.readouterr().out
    assert absence(absent)["peers_absent"].startswith("timm_style needs a GPU; ")
    assert absence({}) == {}


def test_the_prefetcher_delivers_each_batch_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    current, side = FakeStream(), FakeStream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(peers, "to_device", lambda batch, device: (batch, device))

    def numbers() -> Generator[int, None, None]:
        yield from range(4)

    taken = list(peers._prefetched(numbers()))
    assert taken == [(0, "cuda"), (1, "cuda"), (2, "cuda")]
    assert side.waited == [current] * 3
    assert current.waited == [side] * 3


def test_spdl_delivers_the_same_batches() -> None:
    pytest.importorskip("spdl.pipeline", reason="spdl is not installed")
    data = torch.utils.data.TensorDataset(torch.arange(6))
    options = {"batch_size": 4, "num_workers": 1, "prefetch_factor": 2}
    with running(PEERS["spdl"].make, data, options, on_gpu=False) as batches:
        taken = [next(batches)[0] for _ in range(3)]
    assert [batch.tolist() for batch in taken] == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3]]
    assert size_of(taken) == 10 * 8
