"""Calls whose estimate is written from PyTorch's sources, and is to be held against a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers.phases import one_a_step
from torch.nn import functional

# Makes the phases of a call, each of which is a step of its own.
Call = Callable[[], Callable[[], None]]


def ctc_loss(
    steps: int,
    batch: int,
    labels: int,
    length: int,
    *,
    change: Callable[[Any], Any] = lambda targets: targets,
    **options: Any,
) -> Call:
    """Return the phases of a loss: data, loss, gradient, and backward pass."""

    def make_step() -> Callable[[], None]:
        made: dict[str, Any] = {}

        def data() -> None:
            made["x"] = torch.randn(steps, batch, labels, device="cuda").log_softmax(2)
            made["x"].requires_grad_()
            targets = torch.randint(1, labels, (batch, length), device="cuda")
            made["targets"] = change(targets)

        def forward() -> None:
            lengths = torch.full((batch,), steps), torch.full((batch,), length)
            made["loss"] = functional.ctc_loss(made["x"], made["targets"], *lengths, **options)

        def gradient() -> None:
            made["gradient"] = torch.ones_like(made["loss"])

        def backward() -> None:
            made["loss"].backward(made["gradient"])

        return one_a_step(data, forward, gradient, backward)

    return make_step


def embedding(
    optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    table: Callable[..., torch.nn.Module] = torch.nn.Embedding,
    loss: Callable[[Any], Any] = lambda out: out.square().sum(),
    uses: int = 1,
    batches: int = 1,
    rows: int = 5000,
    **options: Any,
) -> Call:
    """Return the phases of a training with sparse gradients; no row is looked up twice."""

    def make_step() -> Callable[[], None]:
        made: dict[str, Any] = {}

        def data() -> None:
            ids = torch.arange(1, 1 + 2 * uses * batches * 512).mul(3).remainder(rows)
            made["ids"] = ids.view(-1, 64, 8)[::2].contiguous().cuda()

        def build() -> None:
            made["table"] = table(rows, 32, sparse=True, device="cuda", **options)
            made["optimizer"] = optimizer(list(made["table"].parameters()))

        def backward() -> None:
            for batch in range(batches):
                ids = made["ids"][batch * uses : (batch + 1) * uses]
                sum(loss(made["table"](each)) for each in ids).backward()

        def update() -> None:
            made["optimizer"].step()
            made["optimizer"].zero_grad()

        return one_a_step(data, build, backward, update, backward, update)

    return make_step


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


_BAG = {"table": torch.nn.EmbeddingBag}
_SPARSE = {
    "SparseAdam": embedding(torch.optim.SparseAdam),
    "SGD": embedding(_sgd),
    "Adagrad": embedding(torch.optim.Adagrad),
    "expanded": embedding(torch.optim.SparseAdam, loss=lambda out: out.sum()),
    "twice": embedding(torch.optim.SparseAdam, uses=2),
    "accumulated": embedding(torch.optim.Adagrad, batches=2),
    "padding": embedding(torch.optim.SparseAdam, padding_idx=0),
    "bags, sum": embedding(torch.optim.SparseAdam, mode="sum", **_BAG),
    "bags, mean": embedding(_sgd, mode="mean", **_BAG),
}


def _two_streams() -> Callable[[], None]:
    """A layer of which the second half runs on a stream of its own, with the backward pass."""
    made: dict[str, Any] = {}

    def build() -> None:
        made["layers"] = [torch.nn.Linear(256, 256, device="cuda") for _ in range(2)]
        made["x"] = torch.randn(32, 256, device="cuda")
        made["stream"] = torch.cuda.Stream()

    def forward() -> None:
        (first, second), stream = made["layers"], made["stream"]
        hidden = first(made["x"])
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            made["out"] = second(hidden).relu()
        torch.cuda.current_stream().wait_stream(stream)

    def backward() -> None:
        made.pop("out").sum().backward()

    return one_a_step(build, forward, backward, forward, backward)


def _prefetched() -> Callable[[], None]:
    """Batches are copied on a stream of their own."""
    made: dict[str, Any] = {}

    def build() -> None:
        made["batch"] = torch.randn(1024, 1024).pin_memory()
        made["stream"] = torch.cuda.Stream()

    def step() -> None:
        with torch.cuda.stream(made["stream"]):
            copied = made["batch"].to("cuda", non_blocking=True)
        torch.cuda.current_stream().wait_stream(made["stream"])
        copied.record_stream(torch.cuda.current_stream())
        (2 * copied).relu_()

    return one_a_step(build, step, step, step)


def _lbfgs() -> Callable[[], None]:
    """A convex problem far from its minimum, so that no reason to stop is found."""
    made: dict[str, Any] = {}

    def build() -> None:
        made["layer"] = torch.nn.Linear(256, 64, device="cuda")
        made["optimizer"] = torch.optim.LBFGS(
            made["layer"].parameters(), lr=0.05, max_iter=4, history_size=6
        )
        made["x"] = 10 * torch.randn(512, 256, device="cuda")

    def closure() -> Any:
        made["optimizer"].zero_grad()
        loss = (made["layer"](made["x"]) - 100).square().sum()
        loss.backward()
        return loss

    def step() -> None:
        made["optimizer"].step(closure)

    return one_a_step(build, step, step, step)


_STREAMS = {"layers": (_two_streams, 5), "prefetching": (_prefetched, 4)}

_CTC = {
    "mean": ctc_loss(50, 16, 20, 12),
    "none": ctc_loss(50, 16, 20, 12, reduction="none"),
    "sum, infinite losses": ctc_loss(50, 16, 20, 12, reduction="sum", zero_infinity=True),
    "large": ctc_loss(300, 32, 64, 40, reduction="sum"),
    "large, infinite losses": ctc_loss(300, 32, 64, 40, zero_infinity=True),
    "in a row": ctc_loss(50, 16, 20, 12, change=lambda targets: targets.flatten()),
    "of the host": ctc_loss(50, 16, 20, 12, change=lambda targets: targets.cpu()),
    "int32": ctc_loss(50, 16, 20, 12, change=lambda targets: targets.int()),
    "blank": ctc_loss(50, 16, 20, 12, blank=7),
}

# Each with the number of its steps.
CALLS: dict[str, tuple[Call, int]] = {
    **{f"ctc {name}": (call, 4) for name, call in _CTC.items()},
    **{f"sparse {name}": (call, 6) for name, call in _SPARSE.items()},
    **{f"streams {name}": call for name, call in _STREAMS.items()},
    "lbfgs": (_lbfgs, 4),
}
