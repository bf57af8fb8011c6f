"""The command line's part for models from a configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._advice import Change, Options, advise, estimate_of
from vramkit.estimate.config._architecture import Architecture
from vramkit.estimate.config._catalogue import catalogue
from vramkit.estimate.config._parallel import Parallel
from vramkit.estimate.config._parameters import count_parameters
from vramkit.estimate.config._policies import OPTIMIZERS, POLICIES
from vramkit.estimate.config._reading import read_model
from vramkit.estimate.config._results import budget_note, is_size, limited
from vramkit.estimate.config._serving import Serving
from vramkit.estimate.config._training_options import Training
from vramkit.units import format_mib

_SERVE: dict[str, tuple[type, str]] = {
    "weights": (str, "quantisation of the weights, such as bf16, fp8, int8, awq or Q4_K_M"),
    "cache": (str, "dtype of the cache, such as bf16 or fp8"),
    "context": (int, "tokens of each sequence"),
    "batch": (int, "sequences at once"),
    "block_tokens": (int, "tokens of a cache block"),
    "chunk_tokens": (int, "most tokens of one forward pass"),
    "utilisation": (float, "part of the GPU that may be used (default: 0.95; of a size: all)"),
}
_TRAIN: dict[str, tuple[type, str]] = {
    "sequence": (int, "tokens of a sequence"),
    "micro_batch": (int, "sequences of a micro-batch"),
    "microbatches": (int, "micro-batches of a step"),
    "policy": (str, f"dtypes: {', '.join(POLICIES)}"),
    "optimizer": (str, f"one of {', '.join(OPTIMIZERS)}"),
    "zero": (int, "ZeRO's stage, 0 to 3; 3 also stands for FSDP2"),
    "recompute": (str, "none, selective or full"),
    "loss": (str, "plain, vocab-parallel or fused"),
    "lora_rank": (int, "rank of LoRA, 0 for none"),
    "lora_targets": (str, "attention or linear"),
    "frozen": (str, "how frozen weights are stored under LoRA, such as bf16 or nf4"),
}
_RANKS = {
    "tensor": "tensor-parallel ranks",
    "pipeline": "pipeline stages",
    "expert": "ranks over which routed experts are spread",
    "data": "data-parallel replicas",
    "context_ranks": "context-parallel ranks, while training",
    "expert_tensor": "ranks that split each routed expert",
}
_SWITCHES = {
    "no_cuda_graphs": ("cuda_graphs", False, "serve: no CUDA graphs"),
    "keep_windows": ("windows", False, "serve: layers with a window keep all tokens"),
    "eager": ("fused", False, "the modules of transformers compute, without fused kernels"),
    "free_gradients": (
        "keep_gradients",
        False,
        "train: gradients are freed between steps (zero_grad(set_to_none=True), one micro-batch)",
    ),
    "no_flash": ("flash", False, "train: attention stores its scores"),
    "no_sequence_parallel": (
        "sequence_parallel",
        False,
        "train: tensor ranks do not split the residual stream",
    ),
    "packed": ("packed", True, "train: the sequences of a micro-batch are one row"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only a model from its configuration has."""
    group = parser.add_argument_group("a large model from its configuration")
    group.add_argument(
        "--config",
        metavar="FILE|NAME",
        help="a config.json, a folder with one, a name of the catalogue, or a model of the hub",
    )
    group.add_argument("--list", action="store_true", help="list the models of the catalogue")
    group.add_argument("--mode", choices=("serve", "train"), help="default: serve")
    group.add_argument(
        "--trace", action="store_true", help="trace the model that transformers builds, on one GPU"
    )
    group.add_argument("--parameters", action="store_true", help="print the parameters too")
    for mode, options in (("serve", _SERVE), ("train", _TRAIN)):
        for name, (kind, meaning) in options.items():
            group.add_argument(_flag(name), type=kind, help=f"{mode}: {meaning}")
    for name, meaning in _RANKS.items():
        group.add_argument(_flag(name), type=int, help=meaning)
    for name, (_, _, meaning) in _SWITCHES.items():
        group.add_argument(_flag(name), action="store_true", help=meaning)


def given_options(arguments: argparse.Namespace) -> list[str]:
    """Return the options of :func:`add_arguments` that were given, as they are written."""
    own = ("config", "list", "mode", "trace", "parameters", *_SERVE, *_TRAIN, *_RANKS, *_SWITCHES)
    values = ((name, getattr(arguments, name)) for name in own)
    return [_flag(name) for name, value in values if value is not None and value is not False]


def run(arguments: argparse.Namespace, write: Callable[[str], object] = print) -> int:
    """Estimate, and write the result.

    Args:
        arguments: What :func:`add_arguments` declares, with ``target``, ``budget``, ``advice`` and
            ``json``.
        write: Takes the text for standard output.

    Returns:
        The exit status: 0 if the model fits, 1 if it does not.

    Raises:
        InvalidArgumentError: The model or an option cannot be used.
    """
    if arguments.list:
        write(_listed(as_json=arguments.json))
        return 0
    if arguments.config is None:
        raise InvalidArgumentError("give --config FILE or --config NAME; --list shows the names")
    model = read_model(arguments.config)
    options = read_options(arguments.mode or "serve", vars(arguments))
    target = limited(arguments.target, arguments.budget)
    estimate = estimate_of(model, options, target)
    advice: tuple[Change, ...] = ()
    if arguments.advice:
        advice = advise(model, options, target=target)
    fits = estimate.fits()
    if arguments.json:
        values = {**estimate.as_dict(), "fits": fits, "advice": [asdict(each) for each in advice]}
        values["parameters"] = asdict(count_parameters(model))
        write(json.dumps(values, indent=2))
    else:
        note = budget_note(arguments.target, arguments.budget)
        text = f"{estimate}\n- {note}" if note else str(estimate)
        write(_text(model, text, advice, with_parameters=arguments.parameters))
    return 0 if fits else 1


def read_options(mode: str, given: dict[str, Any]) -> Options:
    """Make the options of a mode from what was given; what is ``None`` is left at its default.

    Args:
        mode: ``"serve"`` or ``"train"``.
        given: Values by the names of the options, and the ``budget``: one that is a size is used
            whole unless ``utilisation`` is given.

    Raises:
        InvalidArgumentError: A value does not work, or an option is the other mode's.
    """
    own, other = (_SERVE, _TRAIN) if mode == "serve" else (_TRAIN, _SERVE)
    kind = Serving if mode == "serve" else Training
    values = {name: given[name] for name in own if given.get(name) is not None}
    if mode == "serve" and is_size(given.get("budget")):
        values.setdefault("utilisation", 1.0)
    for name, value in values.items():
        if not isinstance(value, (int, float) if own[name][0] is float else own[name][0]):
            raise InvalidArgumentError(f"{_flag(name)} cannot be {value!r}")
    foreign = [_flag(name) for name in other if given.get(name) is not None]
    for name, (field, value, _) in _SWITCHES.items():
        if given.get(name):
            if field in {each.name for each in fields(kind)}:
                values[field] = value
            else:
                foreign.append(_flag(name))
    if foreign:
        mode_of_these = "train" if mode == "serve" else "serve"
        raise InvalidArgumentError(
            f"{', '.join(foreign)} cannot be used with --mode {mode}, but with --mode "
            f"{mode_of_these}"
        )
    ranks = {name: given[name] for name in _RANKS if given.get(name) is not None}
    if "context_ranks" in ranks:
        ranks["context"] = ranks.pop("context_ranks")
    return kind(**values, parallel=Parallel(**ranks))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listed(*, as_json: bool) -> str:
    entries = catalogue()
    if as_json:
        return json.dumps([asdict(entry) for entry in entries], indent=2)
    width = max(len(entry.name) for entry in entries)
    return "\n".join(f"{entry.name:{width}}  {entry.title}" for entry in entries)


def _text(
    model: Architecture, estimate: str, advice: tuple[Change, ...], *, with_parameters: bool
) -> str:
    parts = [str(count_parameters(model))] if with_parameters else []
    parts.append(estimate)
    if advice:
        width = max(len(each.change) for each in advice)
        lines = ["What would save memory:"]
        lines += [
            f"  {each.change:{width}}  saves {format_mib(each.saved_bytes):>9}, "
            f"{'fits' if each.fits else 'does not fit'}; cost: {each.cost}"
            for each in advice
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
