"""Quantisation schemes of weights: how many bytes a matrix takes, and what stays unquantised.

Sources: DeepSeek-V3's technical report (arXiv 2412.19437), section 3.3, for blocks of 128 x 128
with one fp32 scale each; AWQ (arXiv 2306.00978) and GPTQ (arXiv 2210.17323) with an fp16 scale and
a 4-bit zero for each group; QLoRA (arXiv 2305.14314) for NF4 with double quantisation; the OCP
Microscaling specification 1.0 for MXFP4; the block structures of ggml for GGUF.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import Architecture, Mixture, Weight

DTYPE_BYTES = {
    "float32": 4,
    "fp32": 4,
    "bfloat16": 2,
    "bf16": 2,
    "float16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
}


@dataclass(frozen=True)
class Scheme:
    """How quantised matrices are stored.

    Attributes:
        name: Its name, for ``weights=``.
        bits: Bits of an element.
        block: Rows and columns that share a scale; 0 stands for all of them.
        block_bits: Bits of the scale, and of the zero where there is one, of a block.
        column_bytes: Bytes for each input feature, as GPTQ's order of groups.
        only_experts: Whether attention and dense MLPs stay as they are.
        left: What stays unquantised, in words.
        left_dtype: Its dtype; None for that of the checkpoint.
    """

    name: str
    bits: float
    block: tuple[int, int] = (0, 0)
    block_bits: float = 0
    column_bytes: int = 0
    only_experts: bool = False
    left: str = "embedding, output layer, norms, biases and routers"
    left_dtype: str | None = None

    def applies(self, weight: Weight) -> bool:
        """Whether a tensor is quantised."""
        return weight.quantised and (weight.part == "experts" or not self.only_experts)

    def matrix_bytes(self, shape: tuple[int, ...]) -> float:
        """Bytes of one matrix ``(out, in)`` with its scales."""
        rows, columns = shape
        blocks = math.ceil(rows / (self.block[0] or rows)) * math.ceil(
            columns / (self.block[1] or columns)
        )
        own = rows * columns * self.bits / 8
        return own + blocks * self.block_bits / 8 + columns * self.column_bytes


_PLAIN = {name: Scheme(name, 8 * DTYPE_BYTES[name]) for name in ("fp32", "bf16", "fp16")}
_QUANTISED = {
    "fp8-block": Scheme("fp8-block", 8, (128, 128), 32),
    "fp8": Scheme("fp8", 8, (1, 0), 32),
    "fp8-tensor": Scheme("fp8-tensor", 8, (0, 0), 32),
    "int8": Scheme("int8", 8, (1, 0), 32),
    "nf4": Scheme("nf4", 4, (1, 64), 8 + 32 / 256),
    "mxfp4": Scheme(
        "mxfp4",
        4,
        (1, 32),
        8,
        only_experts=True,
        left="everything but the routed experts' matrices",
    ),
    "nvfp4": Scheme("nvfp4", 4, (1, 16), 8),
}
_GROUPED = {"awq": 0, "gptq": 4, "int4": 0}
_GROUPS = (32, 64, 128)


def scheme_of(name: str, model: Architecture) -> Scheme:
    """Return the scheme of a name.

    Args:
        name: ``"checkpoint"`` for what the configuration says; a dtype; ``"fp8-block"``,
            ``"fp8"`` (a scale for each output channel), ``"fp8-tensor"``, ``"int8"``; ``"awq"``,
            ``"gptq"`` or ``"int4"``, with groups of 128, or 32 or 64 as in ``"awq-64"``;
            ``"nf4"``, ``"mxfp4"``, ``"nvfp4"``.
        model: The model, for ``"checkpoint"``.

    Raises:
        InvalidArgumentError: The name or the configuration's quantisation is not known.
    """
    if name == "checkpoint":
        return scheme_of(_checkpoint_scheme(model), model)
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _QUANTISED:
        return _with_something_to_do(_QUANTISED[name], model)
    kind, _, group = name.partition("-")
    if kind in _GROUPED and (not group or group in map(str, _GROUPS)):
        size = int(group or 128)
        return Scheme(f"{kind}-{size}", 4, (1, size), 16 + 4, column_bytes=_GROUPED[kind])
    raise InvalidArgumentError(
        f"weights {name!r} are not known; known are checkpoint, {', '.join(scheme_names())}, and "
        "the kinds of GGUF such as Q4_K_M"
    )


def _with_something_to_do(scheme: Scheme, model: Architecture) -> Scheme:
    """Refuse a scheme for routed experts where there are none."""
    has_experts = any(isinstance(layer.feed_forward, Mixture) for layer in model.layers)
    if scheme.only_experts and not has_experts:
        raise InvalidArgumentError(
            f"{scheme.name} quantises routed experts only, and {model.name} has none; take "
            "another scheme, for instance nvfp4 or awq"
        )
    return scheme


def scheme_names() -> tuple[str, ...]:
    """The names of the schemes, without those of GGUF."""
    return (*_PLAIN, *_QUANTISED, *_GROUPED)


def base_dtype(model: Architecture) -> str:
    """The dtype of what is not quantised: that of the checkpoint, where it has 16 bits."""
    known = {"bfloat16": "bf16", "float16": "fp16", "bf16": "bf16", "fp16": "fp16"}
    return known.get(model.dtype, "bf16")


def _checkpoint_scheme(model: Architecture) -> str:
    config = model.quantisation
    method = config.get("quant_method")
    if not config:
        # Engines serve what was saved in 32 bits in 16.
        names = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16"}
        found = names.get(model.dtype)
        if found is None:
            raise InvalidArgumentError(
                f"{model.name}: the dtype {model.dtype!r} of the checkpoint is not known; say "
                "which weights to count, for instance weights='bf16'"
            )
        return found
    if method == "fp8":
        return "fp8-block" if config.get("weight_block_size") == [128, 128] else "fp8-tensor"
    if method == "mxfp4":
        return "mxfp4"
    if (
        method in ("awq", "gptq")
        and config.get("bits") == 4
        and config.get("group_size") in _GROUPS
    ):
        return f"{method}-{config['group_size']}"
    raise InvalidArgumentError(
        f"{model.name}: the configuration's quantisation {method!r} is not known in this form; say "
        "which weights to count, for instance weights='int8'"
    )
