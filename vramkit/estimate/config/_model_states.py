"""Weights, gradients and optimizer state of a rank under ZeRO, and LoRA's adapters.

Source of the stages: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models" (arXiv 1910.02054), section 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vramkit.estimate.config._architecture import Weight
from vramkit.estimate.config._parallel import Cut
from vramkit.estimate.config._policies import Policy, optimizer_bytes


@dataclass(frozen=True)
class StatePlan:
    """How states are stored and sharded.

    Attributes:
        policy: The dtypes.
        optimizer: The optimizer's name.
        zero: ZeRO's stage; 3 also stands for FSDP2.
        cut: How tensor and expert ranks split the weights.
        dense_ranks: Data-parallel ranks that share what is no expert's.
        expert_ranks: Data-parallel ranks that share the routed experts.
    """

    policy: Policy
    optimizer: str
    zero: int
    cut: Cut
    dense_ranks: int
    expert_ranks: int


@dataclass(frozen=True)
class States:
    """Bytes of a rank's states.

    Attributes:
        parameters: Trainable parameters of the rank before ZeRO shards them.
        weights: Weights.
        gradients: Gradients.
        optimizer: Optimizer state, with the fp32 copy of the weights.
    """

    parameters: int
    weights: float
    gradients: float
    optimizer: float


def states_of(weights: Iterable[Weight], plan: StatePlan) -> States:
    """Sum the states of tensors that are trained.

    Args:
        weights: The tensors of a stage.
        plan: How they are stored and sharded.
    """
    policy, zero = plan.policy, plan.zero
    count, stored, gradients, optimizer = 0, 0.0, 0.0, 0.0
    for weight in weights:
        shape, copies = plan.cut.shape(weight), plan.cut.experts(weight)
        elements = math.prod(shape) * copies
        if weight.buffer:
            stored += 4 * elements
            continue
        ranks = plan.expert_ranks if weight.experts else plan.dense_ranks
        count += elements
        stored += policy.stored_bytes(weight) * elements / (ranks if zero >= 3 else 1)
        gradients += policy.gradient_bytes * elements / (ranks if zero >= 2 else 1)
        state = optimizer_bytes(plan.optimizer, weight, shape, policy.moment_bytes) * copies
        state += policy.master_bytes * elements
        optimizer += state / (ranks if zero >= 1 else 1)
    return States(count, stored, gradients, optimizer)


def gathered_bytes(weights: Iterable[Weight], plan: StatePlan) -> float:
    """Bytes of tensors on a rank while ZeRO 3 has gathered them, in the dtype of activations."""
    element = plan.policy.element_bytes
    return sum(
        element * math.prod(plan.cut.shape(weight)) * plan.cut.experts(weight)
        for weight in weights
        if not weight.buffer
    )


def adapters_of(weights: Iterable[Weight], rank: int, targets: str) -> list[Weight]:
    """Return LoRA's two matrices for each targeted matrix (arXiv 2106.09685).

    Args:
        weights: The tensors of a stage.
        rank: LoRA's rank.
        targets: ``"attention"``, or ``"linear"`` for dense MLPs and shared experts too. Routed
            experts have none.
    """
    parts = ("attention",) if targets == "attention" else ("attention", "mlp")
    found = []
    for weight in weights:
        if weight.part not in parts or not weight.quantised or weight.experts:
            continue
        out, inner = weight.shape
        split, whole = weight.units, 1
        first = split if weight.input_split else whole
        last = whole if weight.input_split else split
        found.append(
            Weight(
                weight.part,
                f"{weight.name}.lora_A",
                (rank, inner),
                first,
                input_split=True,
                repeats=weight.repeats,
            )
        )
        found.append(
            Weight(weight.part, f"{weight.name}.lora_B", (out, rank), last, repeats=weight.repeats)
        )
    return found
