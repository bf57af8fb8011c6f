"""Where an operator belongs: the module, the line of Python, and what the program is doing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from vramkit.estimate import _engine
from vramkit.estimate._recorder import Phase

_LIBRARIES = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
    str(Path(contextlib.__file__)),
)


class Attribution:
    """Follows modules and optimizers by torch's global hooks.

    Attributes:
        roots: The outermost modules that were called.
    """

    def __init__(
        self, on_root: Callable[[torch.nn.Module], None], on_optimizer: Callable[[Any], None]
    ) -> None:
        """Start outside every module.

        Args:
            on_root: Called with each outermost module before it runs.
            on_optimizer: Called with each optimizer before and after its step.
        """
        self.roots: list[torch.nn.Module] = []
        self._on_root = on_root
        self._on_optimizer = on_optimizer
        self._names: dict[int, str] = {}
        self._stack: list[str] = []
        self._in_optimizer = False
        # Whether the optimizer runs within a backward pass, or a backward pass within its closure.
        self._in_hook = False
        self._of_node: dict[int, tuple[str, str]] = {}

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow until the scope ends."""
        handles = (
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
            optimizers.register_optimizer_step_pre_hook(self._begin_update),
            optimizers.register_optimizer_step_post_hook(self._end_update),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def phase(self) -> Phase:
        """Return what the program is doing; before the first step it is building."""
        backward = _engine.in_backward()
        if self._in_optimizer and not self._stack and (self._in_hook or not backward):
            return Phase.OPTIMIZER
        return Phase.BACKWARD if backward else Phase.FORWARD

    @property
    def recomputes(self) -> bool:
        """Whether a module runs inside the backward pass, as under checkpointing."""
        return bool(self._stack)

    def place(self) -> tuple[str, str]:
        """Return module and line of the operator that is called; in backward, of its forward."""
        if _engine.in_backward() and not self._stack:
            node = torch._C._current_autograd_node()
            number = node._sequence_nr() if node is not None else -1
            if number in self._of_node:
                return self._of_node[number]
        found = (self._stack[-1] if self._stack else "", line_of_caller())
        # The autograd node of this operator was numbered just before; operators that have none
        # follow under the same number, and must not take its place.
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        self._of_node.setdefault(number, found)
        return found

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        if not self._stack and id(module) not in self._names:
            self._learn(module)
        if not self._stack and not _engine.in_backward():
            self._on_root(module)
        self._stack.append(self._names.get(id(module), type(module).__name__))

    def _leave(self, _: torch.nn.Module, __: Any, ___: Any) -> None:
        if self._stack:
            self._stack.pop()

    def _learn(self, root: torch.nn.Module) -> None:
        self.roots.append(root)
        for name, module in root.named_modules():
            self._names.setdefault(id(module), name or type(root).__name__)

    def _begin_update(self, optimizer: Any, _: Any, __: Any) -> None:
        self._on_optimizer(optimizer)
        self._in_optimizer, self._in_hook = True, _engine.in_backward()

    def _end_update(self, optimizer: Any, _: Any, __: Any) -> None:
        self._in_optimizer = False
        self._on_optimizer(optimizer)


def is_library(file: str) -> bool:
    """Tell whether code is torch's or vramkit's, or in no file."""
    return file.startswith((*_LIBRARIES, "<"))


def line_of_error(err: BaseException) -> str:
    """Return the innermost line outside torch and vramkit of an error's traceback."""
    found = "a place without Python code"
    traceback = err.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if not is_library(name):
            found = f"{name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def calling_frame() -> FrameType | None:
    """Return the innermost frame outside torch and vramkit."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def line_of_caller() -> str:
    """Return the innermost line outside torch and vramkit, as ``file:number``."""
    frame = calling_frame()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
