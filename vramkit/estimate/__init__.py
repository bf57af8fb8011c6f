"""Estimates the GPU memory of a training or inference step, without a GPU.

The module itself is the function: ``vramkit.estimate(model, sample_input, optimizer="adamw")``.
"""

import sys
from types import ModuleType
from typing import Any

from vramkit.estimate._advice import Advice, Proposal
from vramkit.estimate._api import Training, estimate
from vramkit.estimate._estimate import Estimate
from vramkit.estimate._peak import Peak, Share
from vramkit.estimate._targets import Target, find_target, targets

__all__ = [
    "Advice",
    "Estimate",
    "Peak",
    "Proposal",
    "Share",
    "Target",
    "Training",
    "estimate",
    "find_target",
    "targets",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Estimate:
        return estimate(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
