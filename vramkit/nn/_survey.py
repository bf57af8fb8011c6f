"""Which convolutions of a model can compute their ReLU too, and why the others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrize import is_parametrized

from vramkit.nn._consumers import keeps_nothing
from vramkit.nn._graphs import Region, regions_of
from vramkit.nn._modules import ConvReLUModule
from vramkit.nn._paths import Save
from vramkit.nn._pieces import called_elsewhere
from vramkit.nn._rehearsal import without_those_that_matter
from vramkit.nn._report import FusionEntry
from vramkit.nn._tracer import BATCH_NORMS, CONVOLUTIONS, is_uninitialized

_RELU_CALLS = frozenset((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"))
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"),
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class _Found:
    """What follows a convolution in one graph: either both a reason and no ReLU, or a ReLU."""

    reason: str | None = None
    relu: str | None = None
    batch_norm: str | None = None
    frees: bool = False


class RefusedError(ValueError):
    """Carries the reason why a convolution stays as it is."""


def survey(model: nn.Module, *, fold_batch_norm: bool) -> list[FusionEntry]:
    """Return an entry for each convolution of a model, in the order of its modules."""
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    known: dict[str, FusionEntry] = {}
    failures: dict[str, str] = {}
    seen = []
    for region in regions_of(model, failures=failures):
        entries = _Survey(model, region, names, fold_batch_norm).entries()
        known |= without_those_that_matter(model, region, entries)
        seen.append(region.prefix)
    failures = {prefix: text for prefix, text in failures.items() if prefix not in seen}
    missing = _Missing(tuple(seen), failures)
    return [_entry(name, module, known, missing) for name, module in _convolutions(model)]


@dataclass(frozen=True)
class _Missing:
    """Tells why no graph has a convolution, by the prefixes of the parts that trace or do not."""

    traced: tuple[str, ...]
    failures: dict[str, str]

    def reason(self, name: str) -> str:
        """Return it in words."""
        around = (p for p in (*self.traced, *self.failures) if name.startswith(p))
        nearest = max(around, key=len, default="")
        return self.failures.get(nearest, "it is not called")


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            yield name, module


def _entry(
    name: str, module: nn.Module, known: dict[str, FusionEntry], missing: _Missing
) -> FusionEntry:
    if isinstance(module, ConvReLUModule):
        kept = "its output" if module.save == "output" else "one bit an element"
        reason = f"{type(module).__name__} keeps {kept} for ReLU's gradient"
        return FusionEntry(name, "fused", reason, save=module.save)
    return known.get(name) or FusionEntry(name, "left", missing.reason(name))


class _Survey:
    """Looks through the graphs of one region."""

    def __init__(
        self, model: nn.Module, region: Region, names: Counter[int], fold_batch_norm: bool
    ) -> None:
        self._region = region
        self._names = names
        self._fold = fold_batch_norm
        root = model.get_submodule(region.prefix.rstrip("."))
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._calls = [
            Counter(id(self._modules[str(n.target)]) for n in graph.nodes if n.op == "call_module")
            for graph in region.graphs
        ]

    def entries(self) -> dict[str, FusionEntry]:
        """Return an entry for each convolution that a graph calls, by its name."""
        found: dict[str, dict[int, _Found]] = {}
        for index, graph in enumerate(self._region.graphs):
            for node in graph.nodes:
                if node.op == "call_module" and self._is_plain_convolution(node):
                    found.setdefault(str(node.target), {})[index] = self._follow(node)
        prefix = self._region.prefix
        return {prefix + name: self._merge(name, results) for name, results in found.items()}

    def _is_plain_convolution(self, node: fx.Node) -> bool:
        module = self._modules[str(node.target)]
        return isinstance(module, CONVOLUTIONS) and not isinstance(module, ConvReLUModule)

    def _merge(self, name: str, results: dict[int, _Found]) -> FusionEntry:
        full, prefix = self._region.prefix + name, self._region.prefix
        for result in results.values():
            if result.reason is not None:
                return FusionEntry(full, "left", result.reason)
        first = next(iter(results.values()))
        if not self._is_always_a_pair(results):
            differs = "its output is used differently in training, in evaluation, or with other "
            return FusionEntry(full, "left", f"{differs}arguments")
        save: Save = "mask" if all(result.frees for result in results.values()) else "output"
        kept = "keep nothing of the output" if save == "mask" else "may keep the output anyway"
        norm = None if first.batch_norm is None else prefix + first.batch_norm
        reason = f"save={save!r}, as the operations that follow {kept}"
        if prefix:
            reason += (
                f"; {prefix.rstrip('.')} must be called as a whole, as its caller does not trace"
            )
        return FusionEntry(full, "fusible", reason, f"{prefix}{first.relu}", norm, save)

    def _is_always_a_pair(self, results: dict[int, _Found]) -> bool:
        """Tell whether each graph calls the convolution and what follows it, or none of them."""
        pairs = {(result.relu, result.batch_norm) for result in results.values()}
        followers = [id(self._modules[name]) for name in next(iter(pairs)) if name is not None]
        without = [calls for index, calls in enumerate(self._calls) if index not in results]
        return len(pairs) == 1 and not any(calls[key] for calls in without for key in followers)

    def _follow(self, node: fx.Node) -> _Found:
        try:
            self._check_convolution(node)
            user = self._only_user(node)
            norm = user if self._type_of(user) in BATCH_NORMS else None
            if norm is not None:
                user = self._only_user(norm)
            self._check_relu(user)
            self._check_recording(node, user)
            self._check_kept(node)
            self._check_methods(str(node.target), str(user.target))
            if norm is not None:
                self._check_kept(norm)
                self._check_norm(norm)
        except RefusedError as refused:
            return _Found(reason=str(refused))
        name = None if norm is None else str(norm.target)
        return _Found(None, str(user.target), name, keeps_nothing(user, self._modules))

    def _check_convolution(self, node: fx.Node) -> None:
        module = self._modules[str(node.target)]
        if is_parametrized(module):
            raise RefusedError("it is parametrized; remove_parametrizations() makes it plain")
        if is_uninitialized(module):
            raise RefusedError(
                f"{type(module).__name__} has no sizes yet; call the model once first"
            )
        if type(module) not in CONVOLUTIONS:
            raise RefusedError(
                f"{type(module).__name__} is a subclass, which may compute otherwise"
            )
        self._check_module(node, "it")

    def _check_norm(self, node: fx.Node) -> None:
        module = self._modules[str(node.target)]
        self._check_module(node, str(node.target))
        if getattr(module, "running_var", None) is None:
            raise RefusedError(f"{node.target} keeps no running statistics that could be folded")
        if not self._fold:
            raise RefusedError(
                f"batch normalization {node.target} comes before the ReLU; fold_batch_norm=True "
                "folds it in evaluation mode"
            )

    def _check_relu(self, node: fx.Node) -> None:
        if node.op in ("call_function", "call_method") and node.target in _RELU_CALLS:
            raise RefusedError("its ReLU is a call in forward(), not a module; use nn.ReLU there")
        if node.op == "call_module" and is_uninitialized(self._modules[str(node.target)]):
            raise RefusedError(
                f"{self._describe(node)} follows, which has no sizes yet; call the model once first"
            )
        if self._type_of(node) is not nn.ReLU:
            raise RefusedError(f"no ReLU follows, but {self._describe(node)}")
        self._check_module(node, str(node.target))

    def _check_recording(self, convolution: fx.Node, relu: fx.Node) -> None:
        if convolution.meta.get("recorded") and not relu.meta.get("recorded"):
            raise RefusedError(f"{relu.target} is called under torch.no_grad(), and it is not")

    def _check_kept(self, node: fx.Node) -> None:
        if node.meta.get("watched"):
            raise RefusedError(
                f"a module that returns or takes the output of {node.target} has backward hooks, "
                "which would see another gradient"
            )
        if node.meta.get("kept"):
            raise RefusedError(
                f"forward() keeps the output of {node.target} beside what it returns, such as in "
                "an attribute, a list or a global variable"
            )

    def _check_methods(self, name: str, relu: str) -> None:
        """Raise an error if another method than ``forward`` calls a convolution without its ReLU.

        This knows pairs whose modules are attributes of one module.
        """
        parent, _, last = name.rpartition(".")
        relus_parent, _, relus_last = relu.rpartition(".")
        model = self._modules[parent]
        if parent == relus_parent and not isinstance(model, nn.Sequential):
            method = called_elsewhere(model, last, relus_last)
            if method is not None:
                raise RefusedError(
                    f"{type(model).__name__}.{method}() calls it, too, and does not name {relu}"
                )

    def _check_module(self, node: fx.Node, subject: str) -> None:
        module = self._modules[str(node.target)]
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise RefusedError(f"{subject} has hooks, which would no longer see what they saw")
        shared = self._names[id(module)] > 1 or any(c[id(module)] > 1 for c in self._calls)
        if shared:
            relu = type(module) is nn.ReLU
            advice = "; give each convolution an nn.ReLU of its own" if relu else ""
            raise RefusedError(f"{subject} is used more than once{advice}")
        if module._compiled_call_impl is not None:
            raise RefusedError(f"{subject} is compiled itself; fuse before you call its compile()")
        for name, value in module.__dict__.items():
            if callable(value) and hasattr(type(module), name):
                raise RefusedError(f"{subject} has a {name}() of its own")
        if str(node.target) in self._region.elsewhere:
            raise RefusedError(
                f"{subject} is also kept outside the model's modules, such as in a list, and "
                "called from there; call it by its attribute"
            )

    def _only_user(self, node: fx.Node) -> fx.Node:
        users = list(node.users)
        if len(users) != 1:
            names = ", ".join(map(self._describe, users)) or "none"
            raise RefusedError(f"the output of {node.target} has {len(users)} consumers: {names}")
        return users[0]

    def _type_of(self, node: fx.Node) -> type[nn.Module] | None:
        return type(self._modules[str(node.target)]) if node.op == "call_module" else None

    def _describe(self, node: fx.Node) -> str:
        if node.op == "output":
            return "the output of the model or of a part that does not trace"
        kind = self._type_of(node)
        if kind is not None:
            return f"{self._region.prefix}{node.target} ({kind.__name__})"
        return str(getattr(node.target, "__name__", node.target))
