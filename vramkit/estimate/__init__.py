"""Estimates the GPU memory of a training or inference step, without a GPU.

The module itself is the function: ``vramkit.estimate(model, sample_input, optimizer="adamw")``;
``help(vramkit.estimate.estimate)`` explains its arguments.
Importing it does not import torch; what traces a step is loaded at first use.
"""

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vramkit.estimate._target import Target
from vramkit.estimate._targets import find_target, targets

if TYPE_CHECKING:
    from vramkit.estimate._advice import Advice, Proposal
    from vramkit.estimate._api import ModelOptions, estimate
    from vramkit.estimate._calibrate import calibrate
    from vramkit.estimate._estimate import Estimate
    from vramkit.estimate._peak import Peak, Share

__all__ = [
    "Advice",
    "Estimate",
    "ModelOptions",
    "Peak",
    "Proposal",
    "Share",
    "Target",
    "calibrate",
    "estimate",
    "find_target",
    "targets",
]

_HOMES = {
    "Advice": "_advice",
    "Estimate": "_estimate",
    "ModelOptions": "_api",
    "Peak": "_peak",
    "Proposal": "_advice",
    "Share": "_peak",
    "calibrate": "_calibrate",
    "estimate": "_api",
}


class _CallableModule(ModuleType):
    @property
    def __signature__(self) -> inspect.Signature:
        from vramkit.estimate._api import SIGNATURE

        return SIGNATURE

    def __call__(self, *args: Any, **options: Any) -> "Estimate":
        from vramkit.estimate._api import estimate

        return estimate(*args, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vramkit.estimate' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vramkit.estimate.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _CallableModule
