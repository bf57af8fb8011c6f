"""The scope in which a step is traced: fakes on a pretended device, and torch's habits on both."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._device
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer as optimizers
from torch.utils import _foreach_utils

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._branches import branches_decided
from vramkit.estimate._calls import calls_of_programs
from vramkit.estimate._compilers import dynamo_undisturbed, scripts_know, scripts_unfused
from vramkit.estimate._conversions import conversions_read
from vramkit.estimate._fake_device import exchanged, fake_device, patched
from vramkit.estimate._fake_methods import holds_readings, methods_of_fakes, without_readings
from vramkit.estimate._guesses import refusal_of
from vramkit.estimate._recurrent import flatten_parameters
from vramkit.estimate._rewrites import operators_of_cuda
from vramkit.estimate._settings import settings_kept
from vramkit.estimate._target import Target
from vramkit.estimate._tracer import Tracer
from vramkit.pool import MemoryPool


@contextlib.contextmanager
def tracing(tracer: Tracer, target: Target, start: Callable[..., Any]) -> Iterator[None]:
    """Make every tensor fake, pretend the target, and record; all is as before afterwards.

    Args:
        tracer: What records.
        target: The GPU.
        start: Where the program begins that will run.
    """
    # Its keys do not say which device was pretended.
    FakeTensorMode.cache_clear()
    tensor = torch.tensor
    with contextlib.ExitStack() as scope:
        scope.enter_context(settings_kept())
        scope.enter_context(dynamo_undisturbed())
        scope.enter_context(scripts_unfused())
        scope.enter_context(fake_device(target))
        scope.callback(tracer.restore_outside)
        scope.enter_context(calls_of_programs())
        scope.enter_context(_fakes_pass_for_tensors())
        functions = scope.enter_context(
            methods_of_fakes(tracer.shadows, tracer, may_guess=tracer.may_guess)
        )
        scope.enter_context(scripts_know({tensor: torch.tensor, **functions}))
        if not tracer.may_guess:
            tracer.when_built = scope.enter_context(conversions_read(start, functions)).change
        scope.enter_context(branches_decided(tracer.shadows.of, tracer))
        tracer.composites = scope.enter_context(
            operators_of_cuda(target, _counter(tracer), tracer.shadows.of, tracer.assume)
        )
        scope.enter_context(patched(torch.nn.RNNBase, flatten_parameters=flatten_parameters))
        scope.enter_context(tracer.attribution.following())
        scope.enter_context(patched(torch.UntypedStorage, resize_=_resize_function(tracer)))
        scope.enter_context(patched(FakeTensor, record_stream=_lend_function(tracer)))
        scope.enter_context(patched(MemoryPool, __init__=_no_pool()))
        scope.enter_context(exchanged(torch, load=_load_function(tracer), save=_save_function()))
        # The exception tells it; the log would print the whole stack besides.
        scope.enter_context(patched(fake_tensor.log, disabled=True))
        scope.enter_context(patched(FakeTensor, __torch_dispatch__=_only_here(tracer)))
        scope.enter_context(patched(threading, excepthook=_hook_of_threads(tracer)))
        scope.enter_context(torch.random.fork_rng(devices=()))
        scope.enter_context(torch.autograd.set_multithreading_enabled(False))
        scope.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        scope.enter_context(tracer)
        scope.callback(FakeTensorMode.cache_clear)
        yield


def _counter(tracer: Tracer) -> Callable[[str], None]:
    def count(kernel: str) -> None:
        tracer.attention[kernel] += 1

    return count


def _resize_function(tracer: Tracer) -> Callable[..., Any]:
    """``UntypedStorage.resize_``, which is no operator, tells the tracer of the new size."""
    real = torch.UntypedStorage.resize_

    def resize(self: torch.UntypedStorage, size: int) -> Any:
        resized = real(self, size)
        tracer.resized(self)
        return resized

    return resize


def _lend_function(tracer: Tracer) -> Callable[..., None]:
    """``Tensor.record_stream`` takes a stream of the pretended device."""

    def record_stream(self: Any, stream: Any) -> None:
        tracer.lend(self, stream)

    return record_stream


def _load_function(tracer: Tracer) -> Callable[..., Any]:
    """``torch.load``, which makes tensors without an operator, tells the tracer of them."""
    real = torch.load

    def load(*args: Any, **options: Any) -> Any:
        loaded = real(*args, **options)
        tracer.loaded(loaded)
        return loaded

    return load


def _save_function() -> Callable[..., None]:
    """``torch.save`` of the step has no data to write; other threads write theirs."""
    owner, real = threading.get_ident(), torch.save

    def save(*args: Any, **options: Any) -> None:
        if threading.get_ident() != owner:
            real(*args, **options)

    return save


def _no_pool() -> Callable[..., None]:
    """Pools of the GPU cannot be made where there is none."""
    real = MemoryPool.__init__

    def make(self: MemoryPool, *args: Any, device: Any = None, **options: Any) -> None:
        if device is not None and torch.device(device).type != "cuda":
            real(self, *args, device=device, **options)
            return
        raise UntraceableError(
            f"{line_of_caller()} makes a MemoryPool of the GPU, and an estimate uses none; leave "
            "the pool out of the estimated step: reserved_bytes['pool'] is the smallest capacity "
            "that the step needs"
        )

    return make


def _only_here(tracer: Tracer) -> Any:
    """Fakes note the other threads of the step, which the tracer's mode does not see."""
    owner, real = threading.get_ident(), FakeTensor.__torch_dispatch__

    def dispatch(_: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if threading.get_ident() != owner:
            tracer.refuse(
                UntraceableError(
                    f"{line_of_caller()} computes in a thread of its own, which is not followed, "
                    "so its memory cannot be known; compute in the thread that runs the step"
                )
            )
        return real(func, types, args, kwargs or {})

    return classmethod(dispatch)


def _hook_of_threads(tracer: Tracer) -> Callable[[threading.ExceptHookArgs], None]:
    """Threads that make tensors on the GPU, which no fake sees, end with an error of PyTorch's."""
    real = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        err = args.exc_value
        reason = refusal_of(err) if isinstance(err, NotImplementedError) else None
        if reason is None:
            real(args)
        else:
            tracer.refuse(UntraceableError(reason))

    return hook


@contextlib.contextmanager
def _fakes_pass_for_tensors() -> Iterator[None]:
    """Where torch and libraries treat tensor subclasses otherwise, fakes count as plain tensors."""
    # torch keeps the set of functions that make tensors; it must not be made of those below.
    torch.utils._device._device_constructors()
    with contextlib.ExitStack() as scope:
        # Starting CUDA for a fake tensor is what FakeTensorMode does where torch was built with it.
        no_start = property(lambda _: True)
        scope.enter_context(patched(FakeTensorMode, avoid_device_init=no_start))
        if hasattr(fake_tensor, "init_gpu_context"):
            scope.enter_context(patched(fake_tensor, init_gpu_context=lambda _: None))
        scope.enter_context(patched(torch, tensor=_tensor_function()))
        mover = _Mover()
        scope.callback(mover.restore)
        scope.enter_context(patched(torch.nn.Module, _apply=_apply_function(mover)))
        # transformers takes a path of its own where it sees fakes (is_tracing).
        hidden = type("FakeTensor", (), {})
        scope.enter_context(patched(torch._subclasses, FakeTensor=hidden))
        # Two lists: that of optimizers, and that of functions such as clip_grad_norm_.
        for types in (optimizers._foreach_supported_types, _foreach_utils._foreach_supported_types):
            types.append(FakeTensor)
            scope.callback(types.remove, FakeTensor)
        yield


def _tensor_function() -> Callable[..., torch.Tensor]:
    """``torch.tensor`` makes its tensor on the host, as its values are known, and then moves it."""
    real = torch.tensor

    def tensor(
        data: Any,
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
    ) -> torch.Tensor:
        del pin_memory
        if device is None:
            device = torch.utils._device.CURRENT_DEVICE or "cpu"
        with torch.device("cpu"):
            if holds_readings(data):
                made = torch.empty_like(real(without_readings(data), dtype=dtype))
            else:
                made = real(data, dtype=dtype)
        if torch.device(device).type != "cpu":
            made = made.to(device)
        return made.requires_grad_(requires_grad) if requires_grad else made

    return tensor


class _Mover:
    """Moves the tensors of modules; a parameter that several modules share moves once."""

    def __init__(self) -> None:
        self._moved: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
        # Tensors with data that fakes have replaced, and where they were.
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def restore(self) -> None:
        """Give modules that were made outside the scope their tensors back."""
        while self._before:
            table, name, tensor = self._before.pop()
            table[name] = tensor

    def apply(
        self, module: torch.nn.Module, fn: Callable[[Any], Any], recurse: bool
    ) -> torch.nn.Module:
        """Do what ``Module._apply`` does; fakes' data cannot be exchanged, so these are new."""
        if recurse:
            for child in module.children():
                child._apply(fn)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self._replace(module._parameters, name, self._renewed(parameter, fn))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                self._replace(module._buffers, name, fn(buffer))
        return module

    def _replace(self, table: dict[str, Any], name: str, new: Any) -> None:
        if not isinstance(table[name], FakeTensor):
            self._before.append((table, name, table[name]))
        table[name] = new

    def _renewed(self, parameter: Any, change: Callable[[Any], Any]) -> Any:
        known = self._moved.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]()
        with torch.no_grad():
            changed = change(parameter)
        if changed is parameter:
            return parameter
        new = torch.nn.Parameter(changed, parameter.requires_grad)
        if parameter.grad is not None:
            new.grad = change(parameter.grad)
        self._moved[id(parameter)] = (weakref.ref(parameter), weakref.ref(new))
        return new


def _apply_function(mover: _Mover) -> Callable[..., torch.nn.Module]:
    def apply(
        self: torch.nn.Module, fn: Callable[[Any], Any], recurse: bool = True
    ) -> torch.nn.Module:
        return mover.apply(self, fn, recurse)

    return apply
