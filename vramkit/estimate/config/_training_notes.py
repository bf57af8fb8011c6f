"""What an estimate of a training assumes, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from vramkit.estimate._target import Target
from vramkit.estimate.config._architecture import Architecture, Mixture
from vramkit.estimate.config._policies import OPTIMIZERS, policy_of
from vramkit.estimate.config._training_options import Training


def assumptions_of(model: Architecture, options: Training, target: Target) -> tuple[str, ...]:
    """Return what was assumed."""
    attention = "FlashAttention" if options.flash else "attention that stores its scores"
    kernels = "fused kernels" if options.fused else "not fused"
    found = [
        f"Policy {options.policy}: {policy_of(options.policy).meaning}.",
        f"Optimizer: {OPTIMIZERS[options.optimizer]}; its step is fused and makes no temporaries.",
        (
            f"Activations: the closed form of Korthikanti et al. 2022 with {attention}; norms and "
            f"activation functions are {kernels}."
        ),
        *_of_ranks(options),
        *_of_memory_savers(options),
    ]
    if any(isinstance(layer.feed_forward, Mixture) for layer in model.layers):
        found.append("Experts receive equally many tokens; twice as many is within the interval.")
    if model.prediction:
        found.append("Layers for multi-token prediction are not trained.")
    if target.assumed:
        found.append(target.assumed)
    return (*found, *model.notes)


def _of_ranks(options: Training) -> Iterator[str]:
    parallel = options.parallel
    if parallel.pipeline > 1:
        yield "Pipeline: 1F1B; each stage holds one micro-batch more than stages follow it."
    if parallel.tensor > 1:
        way = "split" if options.sequence_parallel else "do not split"
        yield f"Tensor ranks {way} norms, dropout and the residual stream."
    if parallel.context > 1:
        yield "Context ranks split every sequence; buffers for exchanged keys are left out."
    if options.zero >= 3:
        yield "ZeRO 3: the next layer is gathered while one computes."


def _of_memory_savers(options: Training) -> Iterator[str]:
    if options.keep_gradients or options.microbatches > 1:
        yield "All gradients are allocated when the activations are at their peak."
    if options.recompute == "full":
        yield "Recomputation: each layer keeps its input; one layer at a time is repeated."
    if options.recompute == "selective" and options.flash:
        yield "Selective recomputation saves nothing beside FlashAttention."
    if options.lora_rank:
        yield (
            f"LoRA of rank {options.lora_rank} on {options.lora_targets} matrices; activations as "
            "when all weights are trained, which is an upper bound."
        )
    if options.packed:
        yield "The sequences of a micro-batch are one row."
