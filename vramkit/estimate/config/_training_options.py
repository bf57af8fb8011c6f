"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._parallel import Parallel, check_parallel
from vramkit.estimate.config._policies import OPTIMIZERS, policy_of
from vramkit.estimate.config._types import check_types

_CHOICES = {
    "optimizer": tuple(OPTIMIZERS),
    "recompute": ("none", "selective", "full"),
    "loss": ("plain", "vocab-parallel", "fused"),
    "lora_targets": ("attention", "linear"),
}


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        sequence: Tokens of a sequence.
        micro_batch: Sequences of a micro-batch on each data-parallel rank.
        microbatches: Micro-batches of a step; with a pipeline, up to ``pipeline`` of them are in
            flight on the first stage. Gradients accumulate.
        packed: Whether the sequences of a micro-batch are joined into one row, as in sequence
            packing; ``sequence`` is then the length of a packed share.
        policy: Dtypes: ``"mixed"``, ``"mixed-16bit-gradients"``, ``"autocast"``, ``"bf16"``,
            ``"fp32"`` or ``"fp8"``.
        optimizer: ``"adamw"``, ``"adamw-8bit"``, ``"adamw-bf16"``, ``"adafactor"``, ``"lion"``,
            ``"muon"``, ``"sgd"`` or ``"sgd-momentum"``.
        zero: ZeRO's stage from 0 to 3; 3 also stands for FSDP2.
        recompute: ``"none"``, ``"selective"`` (the attention's scores) or ``"full"`` (whole
            layers).
        fused: Whether norms and activation functions are fused kernels, as in Megatron-LM or
            Liger; the modules of transformers are not.
        keep_gradients: Whether gradients stay allocated between steps, as in Megatron-LM and
            DeepSpeed. With ``zero_grad(set_to_none=True)`` and one micro-batch they appear while
            the activations go.
        flash: Whether attention stores no scores.
        sequence_parallel: Whether the tensor ranks split the residual stream.
        loss: ``"plain"`` (PyTorch's cross entropy over fp32 logits), ``"vocab-parallel"``
            (Megatron-LM's, in place) or ``"fused"`` (with the output layer, in chunks).
        lora_rank: LoRA's rank; 0 trains all weights.
        lora_targets: ``"attention"`` or ``"linear"``.
        frozen: How frozen weights are stored under LoRA: ``"bf16"``, ``"nf4"`` (QLoRA), ``"int8"``
            or another scheme of :class:`Serving`.
        parallel: How ranks split the model.

    Raises:
        ArgumentTypeError: A value is of another type.
        InvalidArgumentError: A value is out of range or not known.
    """

    sequence: int = 4096
    micro_batch: int = 1
    microbatches: int = 1
    packed: bool = False
    policy: str = "mixed"
    optimizer: str = "adamw"
    zero: int = 0
    recompute: str = "none"
    fused: bool = True
    keep_gradients: bool = True
    flash: bool = True
    sequence_parallel: bool = True
    loss: str = "plain"
    lora_rank: int = 0
    lora_targets: str = "attention"
    frozen: str = "bf16"
    parallel: Parallel = field(default_factory=Parallel)

    def __post_init__(self) -> None:
        """Check each value."""
        check_types(self)
        check_parallel(self.parallel)
        limits = {
            "sequence": (1, 1 << 28),
            "micro_batch": (1, 1 << 20),
            "microbatches": (1, 1 << 20),
            "zero": (0, 3),
            "lora_rank": (0, 1 << 14),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise InvalidArgumentError(
                    f"{name} must be an integer from {least} to {most:,}, got {value!r}"
                )
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise InvalidArgumentError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}"
                )
        policy_of(self.policy)
        if self.sequence % self.parallel.context:
            raise InvalidArgumentError(
                f"{self.sequence:,} tokens cannot be split over {self.parallel.context} context "
                "ranks; make sequence a multiple"
            )
