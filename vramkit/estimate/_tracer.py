"""A dispatch mode that records every block of device memory while a program runs on fakes."""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)
from torch.utils._pytree import tree_leaves, tree_map

from vramkit.errors import UntraceableError
from vramkit.estimate import _branches, _engine, _guesses, _sparse, _streams
from vramkit.estimate._attribution import Attribution, line_of_caller
from vramkit.estimate._devices import check_devices
from vramkit.estimate._dtypes import check_dtypes
from vramkit.estimate._ops import RULES, Call, Drop, Give, Host, Keep, Plan, Take, is_unknown
from vramkit.estimate._recorder import Block, Kind, Phase, Recorder
from vramkit.estimate._rewrites import REWRITES
from vramkit.estimate._shadow import Shadows, follows_from_finite
from vramkit.estimate._strides import as_on_device
from vramkit.estimate._target import Target

_aten = torch.ops.aten
_READS = (_aten._local_scalar_dense.default, _aten.is_nonzero.default)
_SIZED_BY_DATA = (
    *(_aten.nonzero.default, _aten.repeat_interleave.Tensor),
    *(_aten._unique2.default, _aten.unique_dim.default, _aten.unique_consecutive.default),
)
_ON_HOST = -1
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_CACHE_FILE = "cache_utils.py"
_REFUSED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    NotImplementedError,
)


class Tracer(TorchDispatchMode):
    """Records births and deaths of storages on ``cuda``, and what operators allocate inside.

    Attributes:
        recorder: What has been recorded.
        shadows: Values that are known without data.
        target: The GPU.
        guesses: Guessed results, as operator and line, and how often.
        attention: How often each kernel of attention was chosen.
        assumed_bytes: Most bytes that a formula gave for each operator where nothing was measured.
        unmeasured: Signatures of the calls for which a formula was used.
        operators: Names of all operators that were called on the device.
        unknown: Operators whose allocations inside are not known.
        step: Number of the step; -1 before the first.
        finite: Lines that ask whether numbers are finite, and how often.
        assumptions: What was assumed of the program, in sentences, and how often.
        more_bytes: By what is assumed: bytes that come on top if it does not hold.
        may_guess: Whether results that depend on data may be guessed.
        composites: What composite operators do on the target, where PyTorch's code for fakes does
            something else.
        when_built: Called before the first step.
        between_operators: Called before each operator.
    """

    supports_higher_order_operators = True

    def __init__(self, target: Target, guess: Literal["refuse", "allow"]) -> None:
        """Record nothing yet.

        Args:
            target: The GPU.
            guess: Whether results that depend on data may be guessed.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = Recorder()
        self.target = target
        self.shadows = Shadows()
        self.guesses: Counter[str] = Counter()
        self.attention: Counter[str] = Counter()
        self.assumed_bytes: Counter[str] = Counter()
        self.attribution = Attribution(self._mark_module, self._mark_optimizer)
        self.unknown: set[str] = set()
        self.unmeasured: set[str] = set()
        self.operators: set[str] = set()
        self.step = -1
        self.finite: Counter[str] = Counter()
        self.assumptions: Counter[str] = Counter()
        self.more_bytes: dict[object, tuple[str, int]] = {}
        self.may_guess = guess == "allow"
        self.composites: dict[str, Callable[..., Any]] = {}
        self.when_built: Callable[[], None] = lambda: None
        self.between_operators: Callable[[], None] = lambda: None
        self._refusal: UntraceableError | None = None
        # By storage: the number of its block, and the bytes that the storage had then.
        self._live: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._deaths: dict[int, Any] = {}
        self._workspaces: set[tuple[str, bool, int]] = set()
        # Modules of parameters, by identity; the modules that are traced keep them alive.
        self._owners: dict[int, str] = {}
        # Parameters that were made outside the scope, and their gradients.
        self._outside: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._operator = ""
        self._place: tuple[str, str] | None = None

    def begin_step(self) -> None:
        """Say that a step begins."""
        self.check_refusal()
        if self.step < 0:
            self.when_built()
        self.step = self.recorder.begin_step()

    def refuse(self, err: UntraceableError) -> None:
        """Keep a refusal that the step, or a thread of it, may drop."""
        self._refusal = self._refusal or err

    def check_refusal(self) -> None:
        """Raise the first refusal that was kept.

        Raises:
            UntraceableError: There is one.
        """
        if self._refusal is not None:
            raise self._refusal

    def take_as_finite(self) -> None:
        """Count that the step asks whether a number is finite."""
        self.finite[line_of_caller()] += 1

    def assume(self, sentence: str) -> None:
        """Count what is assumed of the program."""
        self.assumptions[sentence] += 1

    def decide(self) -> bool | None:
        """Return what a condition of PyTorch's own code is, where a rule says so."""
        return _branches.decide()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on fakes and record what it allocates."""
        kwargs = kwargs or {}
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # DTensor and others call operators on what they consist of
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._inside(func, args, kwargs)
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)  # C++ code that asks for a device expects no exception
        self.between_operators()
        self._operator, self._place = func.name(), None
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        for leaf in leaves:
            self._birth(leaf)
        if _sparse.concerns(self._operator, args, leaves):
            return _sparse.run(self, func, args, kwargs)
        rewrite = REWRITES.get(self._operator)
        if rewrite is None and (
            self._operator in self.composites or _has_parts_only(self._operator)
        ):
            return self._take_apart(func, args, kwargs)
        out = rewrite(self, func, args, kwargs) if rewrite else NotImplemented
        if out is NotImplemented:
            out = self.run(func, args, kwargs)
            self._record(args, kwargs, out)
        return out

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator that DTensor draws random numbers by; no other has operators inside."""
        if func.name() != "run_dtensor_rng_op":
            raise UntraceableError(
                f"{line_of_caller()} uses {func.name()}, which is not followed, so its memory "
                "cannot be known; leave it out of the estimated step"
            )
        _, _, operator, *rest = args
        with self:
            return operator(*rest, **kwargs)

    def _take_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a composite operator, which comes whole in inference mode only, by its parts."""
        on_device = _is_on_device(tuple(tree_leaves((args, kwargs))))
        other = self.composites.get(func.name()) if on_device else None
        with self:
            if other is not None:
                return other(*args, **kwargs)
            # Not func.decompose(): PyTorch has other decompositions for its compiler.
            return func._op_dk(_COMPOSITE, *args, **kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on fakes, without the births of its results."""
        check_devices(func, args)
        check_dtypes(func, args)
        known = self._known_value(func, args, kwargs)
        if known is not NotImplemented:
            return known
        before = self.shadows.keep(func, args, kwargs)
        try:
            out = as_on_device(func, args, func(*args, **kwargs))
        except _REFUSED as err:
            return self._guess(func, args, err)
        self.shadows.follow(func, args, kwargs, out, before)
        answer = _branches.answer_of_generation(func.name(), out)
        if answer is not None and self.shadows.of(out) is None:
            self.shadows.set_truth(out, answer[0])
            self.assume(answer[1])
        return out

    def record(self, args: Any, kwargs: Any, outputs: tuple[Any, ...]) -> None:
        """Record the births of an operator's results, and what it allocates inside."""
        self._record(args, kwargs, outputs)

    def record_hidden(self, name: str, args: Any, kwargs: Any) -> None:
        """Record what an operator that returns its first argument allocates inside."""
        rule = RULES.get(name)
        if rule is not None:
            call = Call(name, args, kwargs, (args[0],), self.target, self._assume)
            self.follow(rule(call), (args[0],))

    def mark(self, tensor: Any, kind: Kind, owner: str = "") -> None:
        """Say what the block of a tensor holds, and for which module."""
        if is_traceable_wrapper_subclass(tensor):
            for name in tensor.__tensor_flatten__()[0]:
                self.mark(getattr(tensor, name), kind, owner)
        if _sparse.is_sparse(tensor):
            tensor = tensor._values()
        if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
            self._birth(tensor)
            number = self._live.get(tensor.untyped_storage()._cdata, _ON_HOST)
            if number != _ON_HOST:
                block = self.recorder.blocks[number]
                block.kind, block.module = kind, owner or block.module

    def _known_value(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _READS:
            value = self.shadows.of(args[0])
            if follows_from_finite(value):
                self.take_as_finite()
            with _disable_current_modes():
                return NotImplemented if value is None else value.item()
        if func in _SIZED_BY_DATA:
            return self._known_result(func, args, kwargs)
        if func is _aten.equal.default:
            first, second = map(self.shadows.of, args[:2])
            with _disable_current_modes():
                if first is not None and second is not None:
                    return torch.equal(first, second)
        return NotImplemented

    def _known_result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A result whose size depends on values, if these are known."""
        value = self.shadows.compute(func, args, kwargs)
        if value is NotImplemented:
            return NotImplemented
        if any(map(follows_from_finite, tree_leaves(value))):
            self.take_as_finite()

        def as_fake(each: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = args[0].new_empty(each.shape, dtype=each.dtype)
            self.shadows.set(found, each)
            return found

        return tree_map(as_fake, value)

    def _guess(self, func: Any, args: Any, err: Exception) -> Any:
        line = line_of_caller()
        if func in _READS:
            decided = self.decide() if args[0].dtype == torch.bool else None
            if decided is not None:
                return decided
            if args[0].dtype == torch.bool and _branches.checks_arguments():
                self.assume(f"The arguments of torch.distributions at {line} are valid.")
                return True
            if _branches.is_factor():
                return math.nan
        guessed = _guesses.guess(func, args) if self.may_guess else NotImplemented
        if guessed is NotImplemented:
            raise UntraceableError(_guesses.refusal(func, line, err, self.may_guess)) from err
        self.guesses[f"{self._operator} at {line}"] += 1
        return guessed

    def _record(self, args: Any, kwargs: Any, out: Any) -> None:
        outputs = tuple(out) if isinstance(out, tuple | list) else (out,)
        rule = RULES.get(self._operator)
        self.operators.add(self._operator)
        on_device = _is_on_device(tuple(tree_leaves(out)))
        if rule is None and is_unknown(self._operator) and on_device:
            self.unknown.add(self._operator)
        if rule is not None and on_device:
            call = Call(self._operator, args, kwargs, outputs, self.target, self._assume)
            self.follow(rule(call), outputs)
        self._births(tree_leaves(out))

    def _births(self, outputs: Iterable[Any]) -> None:
        for output in outputs:
            if isinstance(output, torch.Tensor):
                self._birth(output)

    def follow(self, plan: Plan, outputs: tuple[Any, ...]) -> None:
        """Record what a plan says that an operator takes, drops and returns."""
        if not any(isinstance(step, Give | Host) for step in plan):
            self._births(outputs)
        taken: list[int] = []
        for step in plan:
            if isinstance(step, Take):
                taken.append(self._allocate(step.size_bytes, Kind.TEMPORARY))
            elif isinstance(step, Drop):
                for _ in range(step.count):
                    self.recorder.free(taken.pop(-1 - step.below))
            elif isinstance(step, Keep):
                self._keep(step)
            else:
                self._result(step, outputs[step.output])
        assert not taken, f"the rule of {self._operator} drops less than it takes"

    def _result(self, step: Give | Host, output: Any) -> None:
        if isinstance(step, Host):
            self._watch(output.untyped_storage(), _ON_HOST)
        elif isinstance(output, torch.Tensor):
            self._birth(output, step.size_bytes)

    def _assume(self, size_bytes: int, signature: str) -> None:
        self.unmeasured.add(signature)
        self.assumed_bytes[self._operator] = max(self.assumed_bytes[self._operator], size_bytes)

    def _keep(self, step: Keep) -> None:
        key = (step.library, _engine.in_backward() and not step.once, _streams.current_number())
        if key not in self._workspaces:
            self._workspaces.add(key)
            self._allocate(step.size_bytes, Kind.WORKSPACE, operator=step.library)

    def _birth(self, tensor: torch.Tensor, size_bytes: int | None = None) -> None:
        if tensor.device.type != "cuda":
            return
        if tensor.layout is torch.sparse_coo:
            self._births((tensor._indices(), tensor._values()))
            return
        if tensor.device.index:
            raise UntraceableError(
                f"{line_of_caller()} uses {tensor.device}, but one GPU is estimated; keep to 'cuda'"
            )
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            self.follow_size(storage)
        elif storage.nbytes():
            number = self._allocate(size_bytes or storage.nbytes(), self._kind())
            self._watch(storage, number)

    def lend(self, tensor: Any, stream: Any) -> None:
        """Say that another stream uses a tensor, as ``Tensor.record_stream`` does."""
        number = self._live.get(tensor.untyped_storage()._cdata, _ON_HOST)
        if number != _ON_HOST and self.recorder.blocks[number].stream != stream.number:
            self.recorder.lent.add(number)

    def loaded(self, tree: Any) -> None:
        """Record the tensors of a file, which no operator makes."""
        self._operator, self._place = "torch.load", None
        self._births(tree_leaves(tree))

    def resized(self, storage: Any) -> None:
        """Record that Python has given a storage another size, which no operator says."""
        if storage._cdata in self._live:
            self._operator, self._place = "UntypedStorage.resize_", None
            self.follow_size(storage)

    def follow_size(self, storage: Any) -> None:
        """Record that a storage has another size: CUDA makes a new block and drops the old one."""
        key, size_bytes = storage._cdata, storage.nbytes()
        if self._bytes.get(key, size_bytes) == size_bytes:
            return
        old, self._bytes[key] = self._live[key], size_bytes
        self._live[key] = _ON_HOST
        if size_bytes:
            self._live[key] = self._allocate(size_bytes, self._kind())
        if old != _ON_HOST:
            self.recorder.free(old)

    def _watch(self, storage: Any, number: int) -> None:
        key = storage._cdata
        self._live[key] = number
        if number != _ON_HOST:
            self._bytes[key] = storage.nbytes()

        def died(_: Any) -> None:
            last = self._live.pop(key)
            self._bytes.pop(key, None)
            del self._deaths[key]
            if last != _ON_HOST:
                self.recorder.free(last)

        self._deaths[key] = weakref.ref(storage, died)

    def _allocate(self, size_bytes: int, kind: Kind, *, operator: str = "") -> int:
        if self._place is None:
            self._place = self.attribution.place()
        module, line = self._place
        phase = self.attribution.phase() if self.step >= 0 else Phase.BUILD
        if kind is Kind.ACTIVATION and _CACHE_FILE in line:
            kind = Kind.KV_CACHE
        name = operator or self._operator
        return self.recorder.allocate(
            Block(
                *(int(size_bytes), name, kind, phase, self.step, module, line),
                stream=_streams.current_number(),
            )
        )

    def _kind(self) -> Kind:
        if self.step < 0:
            return Kind.DATA
        phase = self.attribution.phase()
        forward = phase is Phase.FORWARD or self.attribution.recomputes
        return Kind.ACTIVATION if forward else Kind.TEMPORARY

    def _mark_module(self, module: torch.nn.Module) -> None:
        root = type(module).__name__
        for name, parameter in module.named_parameters():
            owner = name.rpartition(".")[0] or root
            self._owners[id(parameter)] = owner
            if not isinstance(parameter, FakeTensor) and id(parameter) not in self._outside:
                # Autograd would add to a gradient with data.
                self._outside[id(parameter)] = parameter, parameter.grad
                parameter.grad = None
            self.mark(parameter, Kind.PARAMETER, owner)
        for name, buffer in module.named_buffers():
            self.mark(buffer, Kind.PARAMETER, name.rpartition(".")[0] or root)

    def restore_outside(self) -> None:
        """Give what was made outside the scope its gradients and values back."""
        self.shadows.give_back()
        for parameter, gradient in self._outside.values():
            parameter.grad = gradient
        self._outside.clear()

    def mark_gradients(self) -> None:
        """Mark the gradients that modules hold now."""
        for module in self.attribution.roots:
            for parameter in module.parameters():
                self.mark(parameter.grad, Kind.GRADIENT, self._owners.get(id(parameter), ""))

    def mark_bucket(self, bucket: Any) -> None:
        """Mark what holds the gradients of several parameters."""
        self.mark(bucket, Kind.GRADIENT)

    def may_need(self, sentence: str, size_bytes: int) -> None:
        """Count bytes that the program may need besides."""
        _, before = self.more_bytes.get(sentence, ("", 0))
        self.more_bytes[sentence] = sentence, before + size_bytes

    def _mark_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.more_bytes[id(optimizer)] = _branches.missing_history(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                owner = self._owners.get(id(parameter), "")
                self.mark(parameter, Kind.PARAMETER, owner)
                self.mark(parameter.grad, Kind.GRADIENT, owner)
                for leaf in tree_leaves(optimizer.state.get(parameter)):
                    self.mark(leaf, Kind.OPTIMIZER_STATE, owner)


def _is_on_device(outputs: tuple[Any, ...]) -> bool:
    return any(
        isinstance(output, torch.Tensor) and output.device.type == "cuda" for output in outputs
    )


@functools.cache
def _has_parts_only(name: str) -> bool:
    """Tell whether an operator has no kernel on the target; asked while a trace runs."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has_kernel(name, _COMPOSITE) and not has_kernel(name, "CUDA"))
