"""Branches on values that depend on data, where a rule decides them: PyTorch's, transformers'.

``ReduceLROnPlateau`` compares a metric, which decides the learning rate and no memory, as what
``Adafactor`` compares decides the size of its steps. ``LBFGS`` asks whether to stop: the rule is
that it does not before ``max_iter`` or ``max_eval``. Distributions ask whether their arguments are
valid, and raise if not: the rule is that they are. ``generate`` of transformers asks which
sequences have ended: the rule is that none has, so that it goes on to its longest, and that its
prompts have no padding. All but the steps' sizes are assumptions that the report names.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import math
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import constraints, distribution
from torch.optim import _adafactor, lbfgs
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vramkit.estimate import _readings
from vramkit.estimate._attribution import calling_frame, is_library, line_of_caller
from vramkit.estimate._fake_device import patched
from vramkit.units import counted, format_mib

_FILE = lbfgs.__file__
_CHECKS = (distribution.__file__, constraints.__file__)
# Files of transformers, which may be imported while a step is built.
_OPTIMIZERS = f"{os.sep}transformers{os.sep}optimization.py"
_GENERATION = f"{os.sep}transformers{os.sep}generation{os.sep}utils.py"
_CRITERIA = f"{os.sep}transformers{os.sep}generation{os.sep}stopping_criteria.py"
# What functions of generation ask by which operators, and the answers.
_PADDING = {"isin.Tensor_Tensor": False, "eq.Tensor": False, "eq.Scalar": False, "ne.Tensor": True}
_ANSWERS = {
    "_prepare_attention_mask_for_generation": _PADDING,
    "generate": _PADDING,
    "_beam_search_has_unfinished_sequences": {"any": True, "all": False},
    "_beam_search": {"_to_copy": True},  # Has a word been made at this place?
}
_ENDLESS = (
    "generate() finds no end of a sequence, so it goes on to the longest that its settings allow."
)
_ASKED = {name for answers in _ANSWERS.values() for name in answers}
_UNPADDED = "generate() finds no padding in its prompts."
# Conditions in the source of LBFGS that hold; all others do not, so that it goes on: a new
# direction is kept, the first step is short, and a search finds its bracket at the second point
# and ends with the third.
_HOLD: dict[str, dict[str, Callable[[FrameType], bool]]] = {
    "step": {"if ys > ": lambda _: True, "t = min(": lambda _: True},
    "_cubic_interpolate": {"if d2_square >= 0": lambda _: True},
    "_strong_wolfe": {
        "or (ls_iter > 1 and": lambda frame: frame.f_locals["ls_iter"] > 0,
        "if abs(gtd_new) <= ": lambda frame: frame.f_locals["ls_iter"] > 1,
        "if abs(bracket[1] - bracket[0]) * d_norm": lambda _: False,
    },
}


Known = Callable[[Any], torch.Tensor | None]


class Notes(_readings.Notes, Protocol):
    """Where a trace keeps what was assumed."""

    def assume(self, sentence: str) -> None:
        """Count an assumption."""


def decide() -> bool | None:
    """Return what a condition of PyTorch's own code is, if that code asks and a rule says."""
    if _frame_in(_adafactor.__file__) is not None:
        return False  # max(least, number) is the least, a number too
    if _is_called_by(_OPTIMIZERS):
        return True  # max(least, tensor) is the tensor, as in a model that has weights
    frame = _frame_in(_FILE)
    if frame is None:
        return None
    line = linecache.getline(_FILE, frame.f_lineno)
    for words, holds in _HOLD.get(frame.f_code.co_name, {}).items():
        if words in line:
            return holds(frame)
    return False


def is_factor() -> bool:
    """Tell whether PyTorch's own code reads a number only to scale a tensor with it."""
    frame = _frame_in(_FILE)
    return frame is not None and "alpha=" in linecache.getline(_FILE, frame.f_lineno)


def checks_arguments() -> bool:
    """Tell whether a distribution of PyTorch's asks whether its arguments are valid."""
    return _frame_in(*_CHECKS) is not None


def answer_of_generation(name: str, out: Any) -> tuple[bool, str] | None:
    """Return what transformers finds when it looks for words, and how the report says so.

    Args:
        name: The operator that it asks by.
        out: The operator's result, truths if it is an answer.
    """
    kind = name.removeprefix("aten::")
    if kind not in _ASKED or out.dtype != torch.bool:
        return None
    frame = calling_frame()
    if frame is None:
        return None
    file, function = frame.f_code.co_filename, frame.f_code.co_name
    if file.endswith(_CRITERIA) and kind == "isin.Tensor_Tensor":
        return False, _ENDLESS
    answers = _ANSWERS.get(function, {}) if file.endswith(_GENERATION) else {}
    if kind not in answers:
        return None
    return answers[kind], _UNPADDED if answers is _PADDING else _ENDLESS


def _is_called_by(file: str) -> bool:
    """Tell whether the code outside torch and vramkit that runs is in a file that ends so."""
    frame = calling_frame()
    return frame is not None and frame.f_code.co_filename.endswith(file)


def _frame_in(*files: str) -> FrameType | None:
    """The innermost frame in one of PyTorch's files, if PyTorch's own code asks."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and is_library(frame.f_code.co_filename):
        if frame.f_code.co_filename in files:
            return frame
        frame = frame.f_back
    return None


@contextlib.contextmanager
def branches_decided(known: Known, notes: Notes) -> Iterator[None]:
    """Let the schedulers and optimizers above run without data.

    Args:
        known: Returns the values of a tensor, or None where they depend on data.
        notes: Where assumptions are counted.
    """

    def number(value: Any) -> Any:
        if isinstance(value, FakeTensor) and value.numel() == 1 and known(value) is None:
            return _readings.make(float, line_of_caller(), notes)
        return value if isinstance(value, _readings.Reading) else float(value)

    with contextlib.ExitStack() as scope:
        step = _plateau_function(number, notes, scope.callback)
        scope.enter_context(patched(ReduceLROnPlateau, step=step))
        scope.enter_context(patched(lbfgs, float=number))
        scope.enter_context(patched(lbfgs.LBFGS, step=_lbfgs_function(notes)))
        yield


def _plateau_function(
    number: Callable[[Any], Any], notes: Notes, at_end: Callable[..., Any]
) -> Callable[..., None]:
    real = ReduceLROnPlateau.step
    # Schedulers may be made outside the trace, where a metric that is not known would be refused.
    changed: set[ReduceLROnPlateau] = set()

    def step(self: Any, metrics: Any, *args: Any, **options: Any) -> None:
        metric = number(metrics)
        if not any(isinstance(each, _readings.Reading) for each in (metric, self.best)):
            real(self, metric, *args, **options)
            return
        if self not in changed:
            changed.add(self)
            at_end(vars(self).update, dict(vars(self)))
        self.best = self.mode_worse
        better = -math.inf if self.mode == "min" else math.inf
        real(self, better, *args, **options)
        self.best = metric
        notes.assume(
            f"ReduceLROnPlateau.step() at {line_of_caller()} finds that its metric has improved, "
            "so the learning rate stays; the step's memory does not depend on that."
        )

    return step


def _lbfgs_function(notes: Notes) -> Callable[..., Any]:
    real: Callable[..., Any] = lbfgs.LBFGS.step

    @functools.wraps(real)  # optimizers mark their functions
    def step(self: Any, closure: Any) -> Any:
        result = real(self, closure)
        notes.assume(
            f"LBFGS.step() at {line_of_caller()} finds no reason to stop, so it iterates as often "
            "as max_iter and max_eval allow."
        )
        return result

    return step


def missing_history(optimizer: Any) -> tuple[str, int]:
    """Say how much larger the history of an LBFGS becomes in later steps, and how many bytes."""
    if not isinstance(optimizer, lbfgs.LBFGS):
        return "", 0
    [group] = optimizer.param_groups
    first = group["params"][0]
    kept, most = len(optimizer.state[first].get("old_dirs") or ()), group["history_size"]
    size = 2 * optimizer._numel() * first.element_size()
    if kept in (0, most):
        return "", 0
    sentence = (
        f"LBFGS keeps {kept} of its {counted(most, 'direction')} after the traced steps; each of "
        f"the others takes {format_mib(size)} (pass a larger steps= to count them)."
    )
    return sentence, (most - kept) * size
