"""What programs call beside operators while a step is traced."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace


def traced(make_step: Callable[[], Callable[[], Any]]) -> Trace:
    return trace(make_step, target=find_target("h100"), steps=2)


def test_statistics_and_marks_are_answered() -> None:
    def step() -> None:
        assert torch.cuda.memory_stats()["allocated_bytes.all.peak"] == 0
        assert torch.cuda.memory_summary() == ""
        torch.cuda.memory._record_memory_history()
        torch.cuda.memory._dump_snapshot("nowhere")
        torch.cuda.set_per_process_memory_fraction(0.5)
        torch.cuda.nvtx.range_push("step")
        torch.cuda.nvtx.range_pop()

    before = torch.cuda.memory_stats, torch.cuda.nvtx.range_push
    traced(lambda: step)
    assert (torch.cuda.memory_stats, torch.cuda.nvtx.range_push) == before


def test_random_states_are_kept_and_restored() -> None:
    def step() -> None:
        with torch.random.fork_rng():
            torch.rand(8, device="cuda")
        torch.cuda.set_rng_state(torch.cuda.get_rng_state())

    traced(lambda: step)
    with pytest.raises(UntraceableError, match=r"test_calls\.py:\d+ makes a generator of random"):
        traced(lambda: lambda: torch.Generator(device="cuda"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_made_in_this_process(workers: int) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(8, 16))
    loader = torch.utils.data.DataLoader(data, 4, num_workers=workers, timeout=workers)
    shapes: list[Any] = []

    def step() -> None:
        shapes.extend(batch.to("cuda").shape for (batch,) in loader)

    traced(lambda: step)
    assert shapes == [(4, 16)] * 4
    assert (loader.num_workers, loader.timeout) == (workers, workers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_functions_run_as_they_were_written() -> None:
    @torch.compile(fullgraph=True)
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def make_step() -> Callable[[], None]:
        layer = torch.compile(torch.nn.Linear(64, 64, device="cuda"), mode="max-autotune")
        x = torch.randn(4, 64, device="cuda")
        return lambda: double(layer(x)).sum().backward()

    assert "aten::addmm" in traced(make_step).operators


def test_one_device_of_data_parallel() -> None:
    def make_step() -> Callable[[], None]:
        model = torch.nn.DataParallel(torch.nn.Linear(64, 64, device="cuda"))
        x = torch.randn(4, 64, device="cuda")
        return lambda: model(x).sum().backward()

    assert traced(make_step).parameters == 64 * 65


def test_the_host_may_be_profiled() -> None:
    activities = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)

    def step() -> None:
        with torch.profiler.profile(activities=activities):
            torch.randn(8, device="cuda").sin()

    traced(lambda: step)


def test_nested_tensors_are_refused() -> None:
    def step() -> None:
        parts = [torch.randn(size, 8, device="cuda") for size in (3, 5)]
        torch.nested.nested_tensor(parts, layout=torch.jagged)

    with pytest.raises(UntraceableError, match=r"test_calls\.py:\d+ makes a nested tensor"):
        traced(lambda: step)


def test_modules_imported_by_a_step_use_the_machine_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "module_that_a_step_imports"
    lines = ("from torch import load, save", "from torch.cuda import is_available, synchronize")
    (tmp_path / f"{name}.py").write_text("\n".join(lines), encoding="utf-8")

    def step() -> None:
        module = importlib.import_module(name)
        assert module.is_available()
        module.synchronize()
        module.save({"a": torch.ones(2)}, tmp_path / "inside.pt")

    traced(lambda: step)
    assert not (tmp_path / "inside.pt").exists()
    module = sys.modules.pop(name)
    assert module.is_available() == torch.cuda.is_available()
    module.save({"a": torch.ones(2)}, tmp_path / "after.pt")
    assert module.load(tmp_path / "after.pt")["a"].sum() == 2


def test_other_threads_write_what_they_save(tmp_path: Path) -> None:
    ended = threading.Event()

    def other() -> None:
        torch.save({"epoch": 3}, tmp_path / "other.pt")
        ended.set()

    def step() -> None:
        threading.Thread(target=other).start()
        assert ended.wait(60)

    trace(lambda: step, target=find_target("h100"), steps=1)
    assert torch.load(tmp_path / "other.pt") == {"epoch": 3}


def test_other_errors_of_threads_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def step() -> None:
        thread = threading.Thread(target=int, args=("x",))
        thread.start()
        thread.join()
        torch.ones(8, device="cuda")

    trace(lambda: step, target=find_target("h100"), steps=1)
    assert [each.exc_type for each in told] == [ValueError]
