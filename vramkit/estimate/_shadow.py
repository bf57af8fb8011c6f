"""Values that are known without data: real results for small tensors that follow from constants.

Programs branch on such values (``if mask.all()``, ``int(lengths.max())``). A small tensor made of
constants is computed for real, on the host, beside the fake one; what depends on data or on random
numbers of the device has no such shadow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

_aten = torch.ops.aten

# Elements up to which values are computed: of numbers, and of integers and truths, as in masks.
_MOST_ELEMENTS, MOST_WHOLE = 1 << 16, 1 << 20
_NAME = "_vramkit_shadow"
# Elements of a tensor of truths up to which all() and any() of it are computed.
_MOST_TRUTHS = 1 << 26
# Marks values that follow from numbers being finite.
_AS_FINITE = "_vramkit_as_finite"
_INFINITE = (math.inf, -math.inf)
_RANDOM = (
    *("rand", "normal", "bernoulli", "uniform", "dropout", "multinomial"),
    *("exponential", "cauchy", "geometric", "poisson"),
)
_OVERWRITES = (
    *("aten::zero_", "aten::fill_.Scalar", "aten::random_", "aten::random_.from"),
    *("aten::random_.to", "aten::uniform_", "aten::normal_", "aten::bernoulli_.float"),
)
# Fill a tensor of another one's shape, whatever that holds. (Floating-point numbers made so are not
# asked for; most are states of optimizers.)
_OF_SHAPES = (
    *("aten::ones_like", "aten::zeros_like", "aten::full_like"),
    *("aten::new_ones", "aten::new_zeros", "aten::new_full"),
)
# Finds no overflow, as in all but a few steps of a real run, so that the optimizer is seen to run.
_KEEPS_FLAGS = "aten::_amp_foreach_non_finite_check_and_unscale_"


class Shadows:
    """The values of one trace's tensors."""

    def __init__(self) -> None:
        """Start with none."""
        # Storages of shadows that no longer hold what the fake would; kept so that no id returns.
        self._stale: dict[int, torch.Tensor] = {}
        # Tensors of the host that were made outside the trace, and what they held.
        self._outside: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # Those of them into which something unknown was written.
        self._unknown: set[int] = set()

    def set(self, fake: torch.Tensor, value: torch.Tensor) -> None:
        """Say what a fake tensor holds."""
        setattr(fake, _NAME, value)

    def set_truth(self, fake: torch.Tensor, truth: bool) -> torch.Tensor:
        """Say that all elements of a fake tensor are true, or false; returns its value."""
        with _disable_current_modes():
            value = torch.tensor(truth).expand(fake.shape)
        self.set(fake, value)
        return value

    def of(self, tensor: Any) -> torch.Tensor | None:
        """Return the value of a tensor, or None where it is not known."""
        if not isinstance(tensor, FakeTensor):
            known = isinstance(tensor, torch.Tensor) and id(tensor) not in self._unknown
            return tensor if known else None
        shadow: torch.Tensor | None = getattr(tensor, _NAME, None)
        if shadow is not None and shadow.untyped_storage()._cdata not in self._stale:
            return shadow
        constant: torch.Tensor | None = getattr(tensor, "constant", None)
        return constant

    def keep(self, func: Any, args: Any, kwargs: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keep what an operator, or one through a view of it, may write into outside the trace.

        Returns:
            What it writes into outside the trace, each with what this holds.
        """
        mutable: bool = func._schema.is_mutable
        written = [id(each) for each in _written(func, args, kwargs)] if mutable else []
        found = []
        for leaf in tree_leaves((args, kwargs)):
            if not isinstance(leaf, torch.Tensor) or isinstance(leaf, FakeTensor):
                continue
            new = id(leaf) not in self._outside
            if id(leaf) in written or (new and leaf.numel() <= _MOST_ELEMENTS):
                with _disable_current_modes(), torch.no_grad():
                    copy = leaf.detach().clone()
                found += [(leaf, copy)] if id(leaf) in written else []
                self._outside.setdefault(id(leaf), (leaf, copy))
        return found

    def give_back(self) -> None:
        """Let tensors from outside the trace hold what they held before it."""
        with _disable_current_modes(), torch.no_grad():
            for tensor, before in self._outside.values():
                if tensor.shape == before.shape:
                    tensor.detach().copy_(before)
                else:
                    tensor.data = before
        self._outside.clear()

    def follow(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        out: Any,
        before: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Compute what an operator's results hold, where its inputs are known.

        Args:
            func: The operator, with ``args`` and ``kwargs``.
            args: Its arguments.
            kwargs: Its arguments with names.
            out: Its result on fakes.
            before: What :meth:`keep` has returned.
        """
        written = _written(func, args, kwargs) if func._schema.is_mutable else []
        with _disable_current_modes():
            computed = any(not torch.equal(tensor, copy) for tensor, copy in before)
        if computed:
            # FakeTensorMode has done so with the real tensors.
            self._attach(out, written[0] if isinstance(out, torch.Tensor) else written)
            return
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        if func.name() == _KEEPS_FLAGS:
            return
        concerned = outputs + written
        if not concerned or self._take_as_finite(func, args, outputs):
            return
        name = func.name()
        known = all(tensor.numel() <= _most_elements(tensor) for tensor in concerned)
        known = known and "empty" not in name
        if any(word in name for word in _RANDOM):
            # The host's generator is the real one, seeded as the program seeds it.
            known = known and all(tensor.device.type == "cpu" for tensor in concerned)
        if not known or not self._compute(func, args, kwargs, out):
            self._forget(written)

    def _compute(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        if func.name() in _OVERWRITES or self._permutes(func, args):
            self._unknown.discard(id(args[0]))
            self._give_room(args[0])
        if func.name() in _OF_SHAPES and not out.dtype.is_floating_point:
            args = (_any_of_shape(args[0]), *args[1:])
        result = self.compute(func, args, kwargs)
        if result is NotImplemented:
            _drop_constants(out)
            return False
        self._attach(out, result)
        return True

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operator's results hold, or NotImplemented where that is not known."""
        leaves = tree_leaves((args, kwargs))
        values = {id(leaf): self.of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if any(value is None for value in values.values()) or any(map(_is_nan, leaves)):
            return NotImplemented

        def on_host(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return values[id(leaf)]
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        try:
            with _disable_current_modes(), torch.no_grad():
                result = func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
                if "lift_fresh" in func.name():
                    result = result.clone()
                results = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
                if not all(map(_can_be_kept, results)):
                    return NotImplemented
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
            return NotImplemented  # no such operator on the host: the value is unknown
        if any(follows_from_finite(value) for value in values.values()):
            for each in results:
                setattr(each, _AS_FINITE, True)
        return result

    def _permutes(self, func: Any, args: Any) -> bool:
        """Tell whether an operator writes every element, by indices that are a permutation."""
        if func.name() != "aten::scatter_.src" or args[0].dim() != 1:
            return False
        index = self.of(args[2])
        if index is None or index.shape != args[0].shape:
            return False
        with _disable_current_modes():
            return bool((index.sort().values == torch.arange(len(index))).all())

    def _take_as_finite(self, func: Any, args: Any, outputs: list[FakeTensor]) -> bool:
        """Let tests of unknown numbers for NaN and infinity say that these are finite."""
        truth = _of_finite(func, args)
        if truth is None or self.of(args[0]) is not None or args[0].numel() > _MOST_TRUTHS:
            return False
        setattr(self.set_truth(outputs[0], truth), _AS_FINITE, True)
        return True

    def _attach(self, out: Any, result: Any) -> None:
        fakes = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        reals = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for fake, real in zip(fakes, reals, strict=bool(fakes)):
            if isinstance(fake, FakeTensor):
                self.set(fake, real)
        _drop_constants(out)

    def _give_room(self, tensor: torch.Tensor) -> None:
        """A tensor that is wholly overwritten may have been unknown before."""
        if self.of(tensor) is None and tensor._base is None:
            with _disable_current_modes():
                room = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            self.set(tensor, room)

    def _forget(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, FakeTensor):
                self._unknown.add(id(tensor))
            shadow = getattr(tensor, _NAME, None)
            if shadow is not None:
                self._stale[shadow.untyped_storage()._cdata] = shadow


def _most_elements(tensor: torch.Tensor) -> int:
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return _MOST_ELEMENTS if numbers else MOST_WHOLE


def _any_of_shape(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and dtype without memory for its elements."""
    with _disable_current_modes():
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _is_nan(leaf: Any) -> bool:
    """Tell whether an argument may be a number that was read from unknown data."""
    return isinstance(leaf, float) and float.__ne__(leaf, leaf)


def _can_be_kept(tensor: torch.Tensor) -> bool:
    """Tell whether a result has memory to read, and no number in it that may be unknown."""
    if tensor._is_zerotensor():
        return False
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    return whole or not bool(tensor.isnan().any())


def _drop_constants(out: Any) -> None:
    """FakeTensorMode knows values of its own, and would compute with them on `cuda`, too."""
    for fake in tree_leaves(out):
        if isinstance(fake, FakeTensor):
            fake.constant = None


def follows_from_finite(value: Any) -> bool:
    """Tell whether a value is known only because numbers are taken as finite."""
    return hasattr(value, _AS_FINITE)


def _of_finite(func: Any, args: Any) -> bool | None:
    """What a comparison says of finite numbers, where it is a test for others; None elsewhere."""
    if func in (_aten.isnan.default, _aten.isinf.default):
        return False
    if func in (_aten.eq.Tensor, _aten.ne.Tensor) and args[0] is args[1]:
        return bool(func is _aten.eq.Tensor) if args[0].is_floating_point() else None
    if func in (_aten.eq.Scalar, _aten.ne.Scalar) and args[1] in _INFINITE:
        return bool(func is _aten.ne.Scalar)
    return None


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name, args[place] if place < len(args) else None)
        found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return found
