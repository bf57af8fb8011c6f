"""Tracing a model's ``forward`` in each way in which it may be called."""

from __future__ import annotations

import copy
import gc
import inspect
import re
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LEAVES = (*CONVOLUTIONS, *BATCH_NORMS, nn.ReLU)
# Of the model's optional arguments, those that are tried alone.
_MOST_ALONE = 8
_TORCH, _FX = str(Path(torch.__file__).parent), str(Path(fx.__file__).parent)


def ways_to_call(model: nn.Module) -> Iterator[frozenset[str]]:
    """Yield sets of the optional arguments that a caller passes: all, none, and each one alone.

    ``forward`` may do otherwise where an argument has its default value, such as None. A flag that
    is passed has its other value; all are first tried with the flags' defaults, as some flags only
    fit alone. Numbers and strings are never passed, as a proxy is neither: it cannot be counted to
    or compared. An argument without a default value counts where its annotation allows None.
    """
    parameters = inspect.signature(inspect.unwrap(_forward_of(model)[0])).parameters.values()
    optional = [
        p
        for p in parameters
        if (_default(p) is not p.empty or p.kind in _STARRED) and not _is_constant(p)
    ]
    every = frozenset(p.name for p in optional)
    unflagged = frozenset(p.name for p in optional if not isinstance(p.default, bool))
    alone = [frozenset([p.name]) for p in optional[:_MOST_ALONE]]
    yield from dict.fromkeys([unflagged, every, frozenset(), *alone])


def _default(parameter: inspect.Parameter) -> Any:
    """Return a default value; None for an argument without one whose annotation allows it."""
    may_be_none = re.search(r"\b(None|Optional)\b", str(parameter.annotation))
    if parameter.default is parameter.empty and may_be_none and parameter.kind not in _STARRED:
        return None
    return parameter.default


def _is_constant(parameter: inspect.Parameter) -> bool:
    value = parameter.default
    return isinstance(value, int | float | str) and not isinstance(value, bool)


_STARRED: dict[Any, Any] = {
    inspect.Parameter.VAR_POSITIONAL: (),
    inspect.Parameter.VAR_KEYWORD: {},
}


def _forward_of(model: nn.Module) -> tuple[Callable[..., Any], bool]:
    """Return what a call of a model runs, and whether it takes the model as its first argument.

    Raises:
        TraceError: The model has a ``forward`` of its own whose arguments are unknown.
    """
    own = model.__dict__.get("forward")
    if own is None:
        return type(model).forward, True
    if isinstance(own, MethodType) and own.__self__ is model:
        return own.__func__, True
    if isinstance(own, FunctionType) and inspect.unwrap(own) is own:
        return own, False
    raise fx.proxy.TraceError(
        f"its forward was replaced by one that wraps another, a {type(own).__name__}"
    )


class UninitializedError(fx.proxy.TraceError):
    """A module gets its sizes from its first input, which a trace does not have."""


def is_uninitialized(module: nn.Module) -> bool:
    """Tell whether a lazy module waits for its first call, which gives it its sizes."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(map(is_lazy, own))


class _ValueProxy(fx.Proxy):
    """Stands for a value of a model, and is no tensor, so that no code may ask whether it is."""

    @property  # type: ignore[misc]  # nothing sets it
    def __class__(self) -> Any:
        """Return the class, as ``isinstance`` does; raise an error if the question is refused."""
        _check_question(sys._getframe(1))
        return type(self)

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        """Return what stands for an attribute of the value, or for the method of this name."""
        return _AttributeProxy(self, k)


class _AttributeProxy(_ValueProxy, fx.proxy.Attribute):
    """Stands for an attribute of a value, which may be a tensor as well."""


def _check_question(frame: FrameType | None) -> None:
    """Raise an error if code asks whether a value is a tensor; torch's own may do so."""
    if frame is not None and frame.f_code is torch.is_tensor.__code__:
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_TORCH):
        return
    names = frame.f_code.co_names
    if "is_tensor" in names or ("isinstance" in names and "Tensor" in names):
        raise fx.proxy.TraceError(f"{frame.f_code.co_qualname} asks whether a value is a tensor")


class Tracer(fx.Tracer):
    """Records the calls of convolutions, normalizations and ReLUs.

    Other modules stand in for these while ``forward`` runs. Code that calls the real ones does not
    reach them through the model's attributes, and would not notice a replacement.

    Args:
        model: Its modules and hooks are changed, for the caller to restore.
        given: The optional arguments that are passed, flags with their other values; the others
            have their default values.
        replaced: By their names, modules that stand in for those of the model; copies stand in for
            the others.

    Attributes:
        elsewhere: The names of modules that ``forward`` does not reach through attributes.
    """

    def __init__(
        self, model: nn.Module, given: frozenset[str], replaced: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._given = given
        self._real: dict[nn.Module, str] = {
            m: name for name, m in model.named_modules() if type(m) in LEAVES
        }
        self.elsewhere: set[str] = set()
        self._outputs: list[weakref.ref[fx.Proxy]] = []
        self._modules = frozenset(model.modules())
        self._watching = frozenset(_without_backward_hooks(model))
        others = {m: replaced.get(name) or copy.copy(m) for m, name in self._real.items()}
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if child in others:
                    parent._modules[name] = others[child]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module's call is recorded, rather than what it calls."""
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        """Return a module's name in the model."""
        if mod not in self._real:
            return str(super().path_of_module(mod))
        self.elsewhere.add(self._real[mod])
        return self._real[mod]

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a call of a module; slices of a ``Sequential`` are modules without a name.

        While a model is traced, the calls of modules in all threads come here.
        """
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        if type(m) is nn.Sequential and m not in self._modules:
            return forward(*args, **kwargs)
        if is_uninitialized(m):
            self._check_leaf(m)
        result = super().call_module(m, forward, args, kwargs)
        if m in self._watching:
            _mark_watched(args, kwargs, result)
        return result

    def _check_leaf(self, m: nn.Module) -> None:
        """Raise an error if the code of a module would run that creates its parameters."""
        name = self.path_of_module(m)
        if not self.is_leaf_module(m, name):
            raise UninitializedError(
                f"{name} ({type(m).__name__}) has no sizes yet; call the model once first"
            )

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return what to call and its arguments: proxies, default values, or flags' others."""
        assert isinstance(self.root, nn.Module)
        root_fn, is_module = _forward_of(self.root)
        call, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = inspect.signature(inspect.unwrap(root_fn)).parameters
        # Keyword-only arguments come before *args here.
        order = sorted(parameters.values(), key=lambda p: p.kind in _STARRED)
        for index, parameter in enumerate(order):
            if parameter.kind in _STARRED and parameter.name not in self._given:
                arguments[index] = _STARRED[parameter.kind]
            elif _default(parameter) is not parameter.empty and parameter.name not in self._given:
                arguments[index] = _default(parameter)
            elif isinstance(parameter.default, bool):
                arguments[index] = not parameter.default
        return call, arguments

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node that knows whether autograd records it."""
        node: fx.Node = super().create_node(*args, **kwargs)
        node.meta["recorded"] = torch.is_grad_enabled()
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a node's value, and note it if fusing may change that value."""
        proxy = _ValueProxy(node, self)
        if node.op == "call_module" and isinstance(
            self.root.get_submodule(str(node.target)), (*CONVOLUTIONS, *BATCH_NORMS)
        ):
            self._outputs.append(weakref.ref(proxy))
        return proxy

    def mark_kept(self) -> None:
        """Let the nodes know whose values something still holds after ``forward`` has returned.

        That may be an attribute, a list or a global variable. Call it before what ``forward`` has
        changed is undone.
        """
        if any(output() is not None for output in self._outputs):
            gc.collect()  # a cycle of references may be all that is left
        for output in self._outputs:
            proxy = output()
            if proxy is not None:
                proxy.node.meta["kept"] = True


def _without_backward_hooks(model: nn.Module) -> Iterator[nn.Module]:
    """Remove the hooks of gradients, which proxies have none of, and yield their modules."""
    for module in model.modules():
        if module._backward_hooks or module._backward_pre_hooks:
            module.__dict__["_backward_hooks"] = {}
            module.__dict__["_backward_pre_hooks"] = {}
            yield module


def _mark_watched(*values: Any) -> None:
    """Let the nodes know whose gradients a hook sees."""
    for value in tree_leaves(values):
        if isinstance(value, fx.Proxy):
            value.node.meta["watched"] = True


def cannot_happen(error: Exception) -> bool:
    """Tell whether an error is the model's own, which each such call raises, and not tracing's."""
    is_tracings = isinstance(error, fx.proxy.TraceError | NameError) or "Proxy" in str(error)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return not (is_tracings or raised_in.startswith(_FX))
