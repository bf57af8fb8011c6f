"""Dtypes of training, and what optimizers keep for each parameter.

Sources: mixed precision with an fp32 copy is that of ZeRO (arXiv 1910.02054), section 3.1; blocks
of 256 elements in 8 bits are those of 8-bit optimizers (arXiv 2110.02861) as bitsandbytes stores
them; rows and columns in place of second moments are Adafactor's (arXiv 1804.04235); one momentum
for matrices and AdamW for everything else are Muon's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import Weight

# Two copies in 8 bits, one transposed for the gradients, with an fp32 scale for 128 x 128 each.
_FLOAT8_WEIGHT = 2 * (1 + 4 / 128**2)
# An fp32 scale for 128 elements of a linear layer's input.
FLOAT8_INPUT = 1 + 4 / 128


@dataclass(frozen=True)
class Policy:
    """The dtypes of a training.

    Attributes:
        name: Its name.
        weight_bytes: Bytes of a parameter that forward and backward use.
        master_bytes: Bytes of the optimizer's copy of it, 0 where there is none.
        gradient_bytes: Bytes of an accumulated gradient.
        moment_bytes: Bytes of an element of the optimizer's state.
        element_bytes: Bytes of an activation.
        float8: Whether linear layers compute in fp8.
        cached: Whether autocast keeps 16-bit copies of the weights until the step ends.
        meaning: What it is, in a sentence.
    """

    name: str
    weight_bytes: int
    master_bytes: int
    gradient_bytes: int
    moment_bytes: int
    element_bytes: int
    meaning: str
    float8: bool = False
    cached: bool = False

    def stored_bytes(self, weight: Weight) -> float:
        """Bytes of a parameter of this tensor in forward and backward."""
        if self.float8 and weight.quantised:
            return _FLOAT8_WEIGHT
        return self.weight_bytes


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("fp32", 4, 0, 4, 4, 4, "everything in fp32"),
        Policy(
            "mixed",
            *(2, 4, 4, 4, 2),
            "16-bit weights and activations, fp32 gradients and an fp32 copy of the weights, as in "
            "Megatron-LM",
        ),
        Policy(
            "mixed-16bit-gradients",
            *(2, 4, 2, 4, 2),
            "16-bit weights, gradients and activations, and an fp32 copy of the weights, as in "
            "DeepSpeed and the ZeRO paper",
        ),
        Policy(
            "autocast",
            *(4, 0, 4, 4, 2),
            "fp32 weights and gradients, 16-bit activations, and 16-bit copies of the weights that "
            "torch.autocast caches",
            cached=True,
        ),
        Policy("bf16", 2, 0, 2, 2, 2, "everything in bf16, the optimizer's state too"),
        Policy(
            "fp8",
            *(2, 4, 4, 4, 2),
            "linear layers in fp8 with block scales, their weights stored twice (once transposed); "
            "the rest as in mixed",
            float8=True,
        ),
    )
}
OPTIMIZERS = {
    "adamw": "AdamW, two moments",
    "adamw-8bit": "AdamW with moments in 8 bits and an fp32 scale for 256 of them",
    "adamw-bf16": "AdamW with moments in bf16, as in DeepSeek-V3's training",
    "adafactor": "Adafactor without momentum: a row and a column for each matrix",
    "lion": "Lion, one momentum",
    "muon": "Muon: one momentum for each matrix of a layer, AdamW for the rest",
    "sgd": "SGD without momentum",
    "sgd-momentum": "SGD with momentum",
}


def policy_of(name: str) -> Policy:
    """Return a policy.

    Raises:
        InvalidArgumentError: There is none of this name.
    """
    if name not in POLICIES:
        raise InvalidArgumentError(
            f"the policy {name!r} is not known; known are {', '.join(POLICIES)}"
        )
    return POLICIES[name]


def optimizer_bytes(optimizer: str, weight: Weight, shape: tuple[int, ...], moment: int) -> float:
    """Bytes of an optimizer's state for one tensor, a copy of the weights not included.

    Args:
        optimizer: Its name, one of ``OPTIMIZERS``.
        weight: The tensor.
        shape: The shape of what a rank has of it, of one expert.
        moment: Bytes of an element of the state, unless the optimizer says otherwise.
    """
    elements = math.prod(shape)
    if optimizer == "sgd":
        return 0
    if optimizer == "adamw-8bit":
        # bitsandbytes leaves small tensors in fp32.
        return elements * (2 + 2 * 4 / 256) if elements >= 4096 else 8 * elements
    if optimizer == "adamw-bf16":
        return 4 * elements
    if optimizer == "adafactor":
        columns = shape[-1]
        return moment * (elements // columns + columns if len(shape) > 1 else elements)
    single = optimizer in ("lion", "sgd-momentum")
    if optimizer == "muon":
        single = len(shape) == 2 and weight.part in ("attention", "mlp", "experts")
    return elements * moment * (1 if single else 2)
