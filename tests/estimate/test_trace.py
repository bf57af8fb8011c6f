"""Traced steps: births and deaths, phases, modules, what is refused and what is guessed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pools import run_script
from torch.nn import functional

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._recorder import Kind, Phase, Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")
_MIB = 1 << 20


def traced(make_step: Callable[[], Callable[[], Any]], steps: int = 2, **options: Any) -> Trace:
    return trace(make_step, target=_H100, steps=steps, **options)


def sizes_of(found: Trace, operator: str) -> list[int]:
    return [block.size_bytes for block in found.blocks if block.operator == operator]


def _training() -> Callable[[], None]:
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256)).to("cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(64, 256, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def test_every_block_dies_at_most_once_and_after_its_birth() -> None:
    found = traced(_training)
    live: set[int] = set()
    for change in found.changes:
        if change < 0:
            live.remove(~change)
        else:
            assert change not in live
            live.add(change)
    assert len(found.step_starts) == 2
    assert found.parameters == 256 * 512 * 2 + 512 + 256


def test_blocks_say_what_they_hold() -> None:
    found = traced(_training)
    by_kind = dict.fromkeys(Kind, 0)
    for block in found.blocks:
        by_kind[block.kind] += block.size_bytes
    parameter_bytes = found.parameters * 4
    assert by_kind[Kind.PARAMETER] == parameter_bytes
    assert by_kind[Kind.GRADIENT] == 2 * parameter_bytes  # each step makes them anew
    assert by_kind[Kind.OPTIMIZER_STATE] == 2 * parameter_bytes
    # cuBLAS for two threads, cuBLASLt for the one that adds biases.
    assert by_kind[Kind.WORKSPACE] == 2 * 32 * _MIB + _MIB


def test_a_backward_block_belongs_to_the_module_and_line_of_its_forward() -> None:
    found = traced(_training, steps=1)
    blocks = [b for b in found.blocks if b.operator == "aten::mm" and b.phase is Phase.BACKWARD]
    assert {block.module for block in blocks} == {"0", "1"}
    assert all("test_trace.py:" in block.line for block in blocks)


def test_operators_without_a_gradient_do_not_take_the_place_of_others() -> None:
    class Positions(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                return x.detach().cos()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = torch.nn.Embedding(64, 32), Positions()

        def forward(self, x: Any) -> Any:
            embedded = self.tokens(x)
            return embedded * self.positions(embedded)

    def make_step() -> Callable[[], None]:
        model, x = Model().to("cuda"), torch.zeros(4096, dtype=torch.long, device="cuda")
        return lambda: model(x).sum().backward()

    found = traced(make_step, steps=1)
    names = {b.module for b in found.blocks if b.operator == "aten::embedding_dense_backward"}
    assert names == {"tokens"}


def test_parameters_gradients_and_state_belong_to_their_module() -> None:
    found = traced(_training, steps=1)
    kinds = (Kind.PARAMETER, Kind.GRADIENT, Kind.OPTIMIZER_STATE)
    held = {
        name: sum(b.size_bytes for b in found.blocks if b.module == name and b.kind in kinds)
        for name in ("0", "1")
    }
    assert held == {"0": 16 * (256 * 512 + 512), "1": 16 * (512 * 256 + 256)}


def test_two_traces_are_alike() -> None:
    first, second = traced(_training), traced(_training)
    # Autocast drops its copies of weights in the order of a hash table, on a GPU too.
    assert first.events().peak_live_bytes == second.events().peak_live_bytes
    assert [b.size_bytes for b in first.blocks] == [b.size_bytes for b in second.blocks]


def test_known_values_steer_the_step() -> None:
    taken: list[str] = []

    def make_step() -> Callable[[], None]:
        mask = torch.ones(8, dtype=torch.bool, device="cuda")
        lengths = torch.arange(1, 9, device="cuda")

        def step() -> None:
            taken.append("all" if mask.all() else "some")
            taken.append(str(int(lengths.max())))

        return step

    traced(make_step, steps=1)
    assert taken == ["all", "8"]


def test_random_numbers_of_the_host_are_real_ones() -> None:
    drawn: list[float] = []
    torch.manual_seed(7)
    expected = torch.rand(1).item()
    torch.manual_seed(7)
    traced(lambda: lambda: drawn.append(torch.rand(1).item()), steps=1)
    assert drawn == [expected]
    assert torch.rand(1).item() == expected  # the generator is as before


def _branching() -> Callable[[], None]:
    x = torch.randn(64, device="cuda")
    return lambda: x.add_(1) if x.sum() > 0 else x


def test_a_branch_on_data_is_refused_with_its_line() -> None:
    with pytest.raises(
        UntraceableError, match=r"at .*test_trace\.py:\d+ reads a value that .*guess="
    ):
        traced(_branching)


def test_a_guess_is_counted_and_named() -> None:
    found = traced(_branching, guess="allow")
    [(where, count)] = found.guesses.items()
    assert where.startswith("aten::is_nonzero at ") or "_local_scalar_dense at " in where
    assert "test_trace.py:" in where
    assert count == 2


@pytest.mark.parametrize(
    ("select", "elements"),
    [
        (lambda x: x.nonzero(), 64 * 16 * 2 * 2),
        (lambda x: x.masked_select(x > 0), 64 * 16),
        (lambda x: x[x > 0], 64 * 16),
    ],
    ids=["nonzero", "masked_select", "mask"],
)
def test_sizes_that_depend_on_data(select: Callable[[Any], Any], elements: int) -> None:
    def make_step() -> Callable[[], None]:
        x = torch.randn(64, 16, device="cuda")
        return lambda: select(x)

    with pytest.raises(UntraceableError, match="whose size depends on the data"):
        traced(make_step, steps=1)
    found = traced(make_step, steps=1, guess="allow")
    assert elements * 4 in {block.size_bytes for block in found.blocks if block.step == 0}
    assert len(found.guesses) == 1


def test_what_cannot_run_without_data_is_refused() -> None:
    def make_step() -> Callable[[], None]:
        x = torch.randn(64, device="cuda")
        return x.unique

    with pytest.raises(UntraceableError, match=r"_unique2 at .*torch\.empty"):
        traced(make_step)
    with pytest.raises(UntraceableError, match="no guess is made for it"):
        traced(make_step, guess="allow")


def test_checkpointing_recomputes() -> None:
    from torch.utils.checkpoint import checkpoint

    def make_step(save: bool) -> Callable[[], None]:
        layers = [torch.nn.Linear(512, 512, device="cuda") for _ in range(6)]
        x = torch.randn(4096, 512, device="cuda", requires_grad=True)

        def block(layer: Any, y: Any) -> Any:
            return functional.gelu(functional.gelu(layer(y)))

        def step() -> None:
            y = x
            for layer in layers:
                y = checkpoint(block, layer, y, use_reentrant=False) if save else block(layer, y)
            y.sum().backward()

        return step

    plain = traced(lambda: make_step(save=False)).events().peak_live_bytes
    saving = traced(lambda: make_step(save=True)).events().peak_live_bytes
    assert saving < 0.75 * plain


def test_tied_parameters_stay_tied() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Embedding(1000, 64)
            self.outer = torch.nn.Linear(64, 1000, bias=False)
            self.outer.weight = self.inner.weight

        def forward(self, x: Any) -> Any:
            return self.outer(self.inner(x))

    def make_step() -> Callable[[], None]:
        model = Tied().to(torch.bfloat16).to("cuda")
        x = torch.zeros(8, dtype=torch.long, device="cuda")
        return lambda: model(x).sum().backward()

    found = traced(make_step, steps=1)
    assert found.parameters == 64_000
    assert sum(b.size_bytes for b in found.blocks if b.kind is Kind.PARAMETER) == 128_000


def test_a_scaler_sees_no_overflow() -> None:
    stepped: list[int] = []

    def make_step() -> Callable[[], None]:
        weight = torch.nn.Parameter(torch.ones(16, device="cuda"))
        optimizer = torch.optim.SGD([weight], 0.1)
        scaler = torch.amp.GradScaler("cuda")
        optimizer.register_step_post_hook(lambda *_: stepped.append(1))

        def step() -> None:
            scaler.scale(weight.sum()).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    traced(make_step, steps=2)
    assert stepped == [1, 1]


def test_errors_of_the_step_are_its_own() -> None:
    def make_step() -> Callable[[], None]:
        a, b = torch.ones(2, 3, device="cuda"), torch.ones(4, 5, device="cuda")
        return lambda: a @ b

    with pytest.raises(RuntimeError, match="must have same reduction dim"):
        traced(make_step)
    with pytest.raises(ZeroDivisionError):
        traced(lambda: lambda: 1 // 0)
    assert not torch.cuda.is_available()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"must return a function .* got NoneType"):
        traced(lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidArgumentError, match="steps must be at least 1, got 0"):
        traced(_training, steps=0)
    with pytest.raises(InvalidArgumentError, match="guess must be 'refuse' or 'allow'"):
        traced(_training, guess="perhaps")


_DEFAULT_DEVICE = """
import torch
from torch import nn
import vramkit

vramkit.estimate(nn.Linear(8, 8), torch.zeros(2, 8))
with torch.device("meta"):
    assert torch.tensor([1.0]).device.type == torch.get_default_device().type == "meta"
assert torch.tensor([1.0]).device.type == "cpu"
"""


def test_default_devices_are_obeyed_afterwards() -> None:
    run_script(_DEFAULT_DEVICE)


def _peak_of(step: Callable[[], Any]) -> int:
    return traced(lambda: step).events().peak_live_bytes


def test_a_storage_that_grows_or_shrinks_is_followed() -> None:
    def grows() -> None:
        torch.empty(10, device="cuda").resize_(1024, 1024)

    def grows_as_a_storage() -> None:
        torch.empty(1, device="cuda").untyped_storage().resize_(4 * _MIB)

    def shrinks() -> None:
        first = torch.empty(1024, 1024, device="cuda")
        first.untyped_storage().resize_(0)
        second = torch.empty(1024, 1024, device="cuda")
        del first, second

    assert _peak_of(grows) == 4 * _MIB + 40
    assert _peak_of(grows_as_a_storage) == 4 * _MIB + 4
    assert _peak_of(shrinks) == 4 * _MIB


def test_a_storage_may_be_emptied_and_filled_again() -> None:
    def step() -> None:
        weight = torch.empty(1024, 1024, device="cuda")
        for _ in range(3):
            weight.untyped_storage().resize_(0)
            weight.untyped_storage().resize_(4 * _MIB)

    found = traced(lambda: step)
    assert found.events().peak_live_bytes == 4 * _MIB
    assert found.live_at(len(found.changes) - 1) == []


def test_a_second_gpu_is_refused() -> None:
    with pytest.raises(UntraceableError, match="uses cuda:1, but one GPU is estimated"):
        traced(lambda: lambda: torch.ones(8, device="cuda:1"))


def test_another_thread_of_the_step_is_refused() -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(64, 64, device="cuda")
        x = torch.randn(4, 64, device="cuda")

        def step() -> None:
            thread = threading.Thread(target=layer, args=(x,))
            thread.start()
            thread.join()

        return step

    for steps in (1, 2):
        with pytest.raises(UntraceableError, match="computes in a thread of its own"):
            traced(make_step, steps)


def test_a_thread_that_makes_tensors_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def in_a_pool() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.ones, 8, device="cuda").result()

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: torch.ones(8, device="cuda"))
        thread.start()
        thread.join()

    for step in (in_a_pool, in_a_thread):
        with pytest.raises(UntraceableError, match=r"on 'cuda' where .* thread that runs the step"):
            traced(lambda step=step: step)
    assert capsys.readouterr().err == ""


def test_a_step_that_does_not_run_is_refused() -> None:
    async def later() -> None:
        torch.ones(8, device="cuda")

    def one_by_one() -> Any:
        yield torch.ones(8, device="cuda")

    for step in (later, one_by_one):
        with pytest.raises(ArgumentTypeError, match="so that none of it has run"):
            traced(lambda step=step: step)  # type: ignore[misc]


def test_a_model_from_outside_is_as_before_afterwards() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    before = {name: (id(value), value.clone()) for name, value in model.state_dict().items()}
    identities = [id(parameter) for parameter in model.parameters()]

    def make_step() -> Callable[[], None]:
        model.to("cuda", torch.float64)
        x = torch.randn(4, 8, device="cuda", dtype=torch.float64)
        return lambda: model(x).sum().backward()

    peaks = [traced(make_step).events().peak_live_bytes for _ in range(2)]
    assert peaks[0] == peaks[1] > 0
    assert [id(parameter) for parameter in model.parameters()] == identities
    for name, value in model.state_dict().items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, before[name][1])
    assert [parameter.grad for parameter in model.parameters()] == [None] * 4


def test_gradients_from_outside_are_as_before_afterwards() -> None:
    first, second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    first(torch.ones(2, 8)).sum().backward()
    kept = first.weight.grad
    assert kept is not None
    values = kept.clone()
    traced(lambda: lambda: (first(torch.ones(2, 8)) + second(torch.ones(2, 8))).sum().backward())
    assert first.weight.grad is kept
    assert torch.equal(kept, values)
    assert second.weight.grad is None


def test_tensors_of_a_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weights": [torch.ones(1024, 1024)]}, path)

    def make_step() -> Callable[[], None]:
        kept = torch.load(path, map_location="cuda")
        return lambda: bool(kept) and None

    found = traced(make_step)
    assert found.events().peak_live_bytes == 4 * _MIB
    assert sizes_of(found, "torch.load") == [4 * _MIB]


def test_tensors_of_the_host_that_were_made_outside_keep_their_values() -> None:
    counter, table = torch.zeros(3), torch.zeros(2, 2)
    seen: list[float] = []

    def make() -> Callable[[], None]:
        layer = torch.nn.Linear(4, 4, device="cuda")

        def step() -> None:
            counter.add_(1)
            table[0] = 7
            torch._foreach_add_([counter], 0.5)
            seen.append(counter[0].item())
            layer(torch.ones(2, 4, device="cuda")).sum().backward()

        return step

    trace(make, target=_H100, steps=3)
    assert seen == [1.5, 3.0, 4.5]
    assert counter.tolist() == [0, 0, 0]
    assert table.tolist() == [[0, 0], [0, 0]]


def test_what_is_unknown_stays_so_in_a_tensor_from_outside() -> None:
    kept = torch.zeros(())

    def make() -> Callable[[], None]:
        x = torch.randn(4, device="cuda")

        def step() -> None:
            kept.copy_(x.sum())
            assert kept.item() == 0

        return step

    with pytest.raises(UntraceableError, match="item"):
        trace(make, target=_H100, steps=1)
    assert kept.item() == 0


def test_the_first_device_may_be_selected() -> None:
    def make(index: int) -> Callable[[], object]:
        def step() -> torch.Tensor:
            with torch.cuda.device(index):
                return torch.ones(64, device="cuda") + 1

        return step

    assert trace(lambda: make(0), target=_H100, steps=1).blocks
    with pytest.raises(UntraceableError, match="uses cuda:1, but one GPU is estimated"):
        trace(lambda: make(1), target=_H100, steps=1)


def test_the_advice_for_an_operator_of_pytorch_works() -> None:
    def make(replaced: bool) -> Callable[[], object]:
        ids = torch.randint(0, 8, (64,), device="cuda")
        return lambda: torch.empty(8, device="cuda") if replaced else torch.bincount(ids)

    text = r"aten::bincount at .* put a tensor of the result's shape, such as torch\.empty"
    with pytest.raises(UntraceableError, match=text):
        trace(lambda: make(False), target=_H100, steps=1)
    assert trace(lambda: make(True), target=_H100, steps=1).blocks
