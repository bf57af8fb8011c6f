"""How a step is made from a model and a sample of its input, and how it can be changed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate._attribution import line_of_error
from vramkit.estimate._fake_device import patched
from vramkit.estimate._optimizers import Factory
from vramkit.estimate._readings import Reading
from vramkit.estimate._samples import check_called_without
from vramkit.estimate._shadow import MOST_WHOLE

_MIXED_DEVICES = "Expected all tensors to be on the same device"


@dataclass(frozen=True)
class Recipe:
    """A step of a model.

    Attributes:
        model: A module on any device, with or without data, or a function that returns one.
        sample: Its input: a tensor, a tuple of arguments, or a dict of keyword arguments; None to
            call it without.
        optimizer: Makes the optimizer; None for no update.
        loss: Function of the model's output; None for the output's own loss, or its sum.
        trains: Whether there is a backward pass.
        autocast: The dtype of autocast, or None for none.
        batch: Number of samples, or None for that of ``sample``.
        checkpoints: Whether each block of the model is checkpointed.
        channels_last: Whether model and images are channels-last.
    """

    model: torch.nn.Module | Callable[[], torch.nn.Module]
    sample: Any
    optimizer: Factory | None = None
    loss: Callable[[Any], torch.Tensor] | None = None
    trains: bool = False
    autocast: torch.dtype | None = None
    batch: int | None = None
    checkpoints: bool = False
    channels_last: bool = False

    @property
    def sample_batch(self) -> int | None:
        """Number of samples: the first dimension of the first tensor."""
        for leaf in tree_leaves(self.sample):
            if isinstance(leaf, torch.Tensor) and leaf.dim():
                return int(leaf.shape[0])
        return None

    def make_step(self) -> Callable[[], None]:
        """Build everything on ``"cuda"``; only fakes, inside a tracing scope."""
        model = _on_device(self.model)
        if self.sample is None:
            check_called_without(model)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.checkpoints:
            checkpoint_blocks(model)
        sample = tree_map(self._placed, self.sample)
        optimizer = self.optimizer(model.parameters()) if self.optimizer else None

        def step() -> None:
            with (
                torch.set_grad_enabled(self.trains),
                torch.autocast("cuda", self.autocast, enabled=self.autocast is not None),
            ):
                output = _call(model, sample)
                loss = self._loss_of(output) if self.trains else None
            if loss is not None:
                del output
                loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return step

    def _placed(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        shape = list(leaf.shape)
        if self.batch is not None and shape and shape[0] == self.sample_batch:
            shape[0] = self.batch
        within = not shape or shape[0] <= leaf.shape[0]
        small = leaf.numel() <= MOST_WHOLE and leaf.device.type == "cpu"
        if within and small and not leaf.is_floating_point():  # such values may steer the model
            values = leaf[: shape[0]] if shape else leaf
            return torch.tensor(values.tolist(), dtype=leaf.dtype, device="cuda")
        placed = torch.empty(
            shape, dtype=leaf.dtype, device="cuda", memory_format=self._format(leaf)
        )
        return placed.requires_grad_(leaf.requires_grad)

    def _format(self, leaf: torch.Tensor) -> torch.memory_format:
        """Images, and volumes, that are channels-last stay so."""
        if self.channels_last and leaf.dim() == 4:
            return torch.channels_last
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        last = formats.get(leaf.dim(), torch.contiguous_format)
        if not leaf.is_contiguous() and leaf.is_contiguous(memory_format=last):
            return last
        return torch.contiguous_format

    def _loss_of(self, output: Any) -> torch.Tensor:
        if self.loss is not None:
            return _called_on_device(self.loss, output)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, torch.Tensor):
            return own
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                return leaf.sum()
        raise InvalidArgumentError(
            f"the model returns {type(output).__name__} without a loss and without a tensor that "
            "needs a gradient; pass loss=, a function of the output"
        )


def _called_on_device(loss: Callable[[Any], torch.Tensor], output: Any) -> torch.Tensor:
    """Labels that the function brings stay where they are; a real output may be there too."""
    try:
        found: object = loss(output)
    except RuntimeError as err:
        if _MIXED_DEVICES not in str(err):
            raise
        raise InvalidArgumentError(
            f"the loss at {line_of_error(err)} mixes tensors on the CPU with the model's output, "
            "which is on 'cuda' here, wherever the model was; move them inside the loss, as in "
            "F.cross_entropy(o, y.to(o.device))"
        ) from err
    if isinstance(found, torch.Tensor):
        return found
    kind = "a number" if isinstance(found, Reading | int | float) else type(found).__name__
    raise ArgumentTypeError(
        f"loss must return a tensor, whose backward() is called, got {kind}; return the loss "
        "itself, without item() or float()"
    )


def checkpoint_blocks(model: torch.nn.Module) -> int:
    """Checkpoint each block of the model's longest list of blocks; returns their number."""
    blocks = _blocks_of(model)
    for block in blocks:
        forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = forward
    return len(blocks)


def _blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    best: list[torch.nn.Module] = []
    most = 0
    for module in model.modules():
        if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            continue
        children = list(module.children())
        size = sum(p.numel() for child in children for p in child.parameters())
        if len(children) > 1 and size > most:
            best, most = children, size
    return best


def _call(model: torch.nn.Module, sample: Any) -> Any:
    if sample is None:
        return model()
    if isinstance(sample, Mapping):
        return model(**sample)
    return model(*sample) if isinstance(sample, tuple | list) else model(sample)


def _on_device(model: torch.nn.Module | Callable[[], torch.nn.Module]) -> torch.nn.Module:
    if isinstance(model, torch.nn.Module):
        return _copy_of_fakes(model)
    made = model()
    if not isinstance(made, torch.nn.Module):
        raise ArgumentTypeError(
            "model must be a module or a function that returns one, got a function that returns "
            f"{type(made).__name__}; a function that returns a step is passed as step="
        )
    return made.to("cuda")


def _kept(self: torch.Tensor, _: dict[int, Any]) -> torch.Tensor:
    """Tensors that are no parameters and no buffers stay on the CPU, as with ``Module.to()``."""
    if self.device.type == "cpu":
        return self
    return torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="cuda")


def _copy_of_fakes(model: torch.nn.Module) -> torch.nn.Module:
    """Copy everything but the data of parameters and buffers; ties are kept."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        # As Module.to() would: a tensor with gaps or overlap becomes a dense one.
        stride = torch.empty_like(tensor, device="meta").stride()
        fake: torch.Tensor = torch.empty_strided(
            tensor.shape, stride, dtype=tensor.dtype, device="cuda"
        )
        if isinstance(tensor, torch.nn.Parameter):
            fake = torch.nn.Parameter(fake, tensor.requires_grad)
        memo[id(tensor)] = fake
    with patched(torch.Tensor, __deepcopy__=_kept):
        copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        if isinstance(module, torch.nn.RNNBase):
            module.flatten_parameters()  # as Module.to() does
    return copied
