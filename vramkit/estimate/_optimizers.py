"""Optimizers by name, and one whose state has eight bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from vramkit.errors import ArgumentTypeError, InvalidArgumentError

Factory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]

_RATE = 1e-4
# bitsandbytes keeps 32 bits for small tensors, and one scale for each block of 256 states.
_SMALLEST_ELEMENTS = 4096
_BLOCK_ELEMENTS = 256


class EightBitAdamW(torch.optim.Optimizer):
    """Allocates what bitsandbytes' AdamW8bit allocates, and updates nothing."""

    def __init__(self, params: Iterable[torch.nn.Parameter]) -> None:
        """Take the parameters; state is made at the first step."""
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state of each parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter not in self.state:
                    self.state[parameter] = _state_of(parameter)


def _state_of(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    if parameter.numel() < _SMALLEST_ELEMENTS:
        full = dict.fromkeys(("exp_avg", "exp_avg_sq"))
        return {name: torch.zeros_like(parameter, dtype=torch.float32) for name in full}
    blocks = -(-parameter.numel() // _BLOCK_ELEMENTS)
    state = {}
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[f"{name}_scale"] = torch.zeros(blocks, device=parameter.device)
    return state


_BY_NAME: dict[str, Factory] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, _RATE),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, _RATE),
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, _RATE, fused=True),
    "adamw-8bit": EightBitAdamW,
    "sgd": lambda parameters: torch.optim.SGD(parameters, _RATE),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, _RATE, momentum=0.9),
}


def optimizer_factory(
    optimizer: str | Factory | torch.optim.Optimizer, model: object = None
) -> Factory:
    """Return what makes the optimizer for the model's fakes.

    Args:
        optimizer: A name, a function of the parameters, or an optimizer, whose class and parameter
            groups are taken.
        model: The module whose parameters an optimizer has.

    Raises:
        ArgumentTypeError: It is something else.
        InvalidArgumentError: No optimizer has this name, or it has parameters of another model.
    """
    if isinstance(optimizer, str):
        if optimizer not in _BY_NAME:
            raise InvalidArgumentError(
                f"optimizer {optimizer!r} is unknown; known are {', '.join(_BY_NAME)}, or pass a "
                "function of the parameters, such as torch.optim.Adafactor"
            )
        return _BY_NAME[optimizer]
    if isinstance(optimizer, torch.optim.Optimizer):
        return _like(optimizer, model)
    if callable(optimizer):
        return optimizer
    raise ArgumentTypeError(
        "optimizer must be a name, an optimizer or a function of the parameters, got "
        f"{type(optimizer).__name__}"
    )


def _like(optimizer: torch.optim.Optimizer, model: object) -> Factory:
    """Make optimizers of the same class whose groups hold the same places among the parameters."""
    kind: Any = type(optimizer)
    defaults = _arguments_of(kind, optimizer.defaults)
    known = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
    places = {id(parameter): place for place, parameter in enumerate(known)}
    groups = []
    for group in optimizer.param_groups:
        if any(id(parameter) not in places for parameter in group["params"]):
            raise InvalidArgumentError(
                f"optimizer: the {kind.__name__} updates parameters that the model does not have; "
                "make it of this model's parameters, or pass a function of the parameters"
            )
        options = {name: value for name, value in group.items() if name != "param_names"}
        groups.append({**options, "params": [places[id(each)] for each in group["params"]]})

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        own = list(parameters)
        chosen = [{**group, "params": [own[at] for at in group["params"]]} for group in groups]
        made: torch.optim.Optimizer = kind(chosen, **defaults)
        return made

    return make


def _arguments_of(kind: type, defaults: dict[str, Any]) -> dict[str, Any]:
    """Defaults that can be passed: AdamW's have one that only Adam takes."""
    taken = inspect.signature(kind).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
        return dict(defaults)
    return {name: value for name, value in defaults.items() if name in taken}
