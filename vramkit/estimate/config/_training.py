"""Memory of training a model: states, activations and loss, on the rank that needs most."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass, replace

from vramkit.estimate._target import Target
from vramkit.estimate._targets import find_target
from vramkit.estimate.config._architecture import Architecture, Layer, Mixture, Weight
from vramkit.estimate.config._keeping import Keeping
from vramkit.estimate.config._layer_weights import (
    embedding_weights,
    head_weights,
    layer_weights,
)
from vramkit.estimate.config._model_states import (
    StatePlan,
    States,
    adapters_of,
    gathered_bytes,
    states_of,
)
from vramkit.estimate.config._overhead import (
    communicators,
    has_bias,
    outside_allocator,
    training_workspaces,
)
from vramkit.estimate.config._parallel import Parallel
from vramkit.estimate.config._policies import FLOAT8_INPUT, policy_of
from vramkit.estimate.config._reading import Model, read_model
from vramkit.estimate.config._results import Amount, RankEstimate, checked_options, exact
from vramkit.estimate.config._stored import stage_weights, storage_of, weight_bytes
from vramkit.estimate.config._training_activations import layer_bytes
from vramkit.estimate.config._training_notes import assumptions_of
from vramkit.estimate.config._training_options import Training
from vramkit.units import counted

_BUSY_LAYERS = 2
_MOST_REPLICAS = 4096


@dataclass(frozen=True)
class TrainingEstimate(RankEstimate):
    """Memory of the rank that needs most, while a model is trained.

    Attributes:
        options: How it is trained.
        trainable: Parameters that are trained, of the whole model.
        stage_bytes: Total of a rank of each pipeline stage.
        in_flight: Micro-batches whose activations the worst rank holds at once.
        needed: The layout with the fewest data-parallel replicas that fits on the target, other
            ranks as they are; ``None`` if none of up to 4,096 does.
    """

    options: Training
    trainable: int
    stage_bytes: tuple[int, ...]
    in_flight: int
    needed: Parallel | None

    def answers(self) -> list[tuple[str, str]]:
        """The parameters, what a step processes, and the GPUs needed."""
        options = self.options
        tokens = options.sequence * options.micro_batch * options.microbatches
        return [
            ("trainable parameters", f"{self.trainable:,}"),
            ("tokens of a step", f"{tokens * options.parallel.data:,}"),
            (f"GPUs needed ({self.target.name})", self._needed_in_words()),
        ]

    def _needed_in_words(self) -> str:
        if self.needed is not None:
            return f"{self.needed.gpus:,} ({counted(self.needed.data, 'data-parallel replica')})"
        if self.options.zero == 0:
            return "replicas alone do not help without ZeRO"
        return "no number of replicas is enough; change other options or ranks"


def estimate_training(
    model: Model, options: Training | None = None, *, target: str | Target = "h100"
) -> TrainingEstimate:
    """Estimate the memory of training a model, on the rank that needs most.

    Weights, gradients and optimizer state follow from shapes and are exact for a framework that
    stores them as the options say. Activations follow from a closed form (Korthikanti et al. 2022,
    arXiv 2205.05198) and have an interval.

    Args:
        model: What :func:`~vramkit.estimate.config.read_model` takes or gives.
        options: How it is trained; the defaults of :class:`Training` without.
        target: The GPU.

    Raises:
        ArgumentTypeError: ``model`` or ``options`` is something else.
        InvalidArgumentError: The ranks cannot split the model, or an option is not known.

    >>> from vramkit.estimate.config import Parallel, Training, read_model
    >>> options = Training(zero=3, recompute="full", parallel=Parallel(data=64))
    >>> estimate = estimate_training(read_model("llama-3.1-70b"), options)
    >>> estimate.fits(), estimate.trainable, estimate.needed.gpus
    (True, 70553706496, 21)
    """
    model, options = read_model(model), checked_options(options, Training)
    gpu = find_target(target)
    plan = _Plan(model, options, gpu)
    stages = [plan.amounts(at) for at in range(options.parallel.pipeline)]
    totals = tuple(sum(amount.size_bytes for amount in stage) for stage in stages)
    worst = totals.index(max(totals))
    return TrainingEstimate(
        model=model.name,
        rank=plan.rank_name(worst),
        gpus=options.parallel.gpus,
        target=gpu,
        amounts=stages[worst],
        assumptions=assumptions_of(model, options, gpu),
        options=options,
        trainable=plan.trainable(),
        stage_bytes=totals,
        in_flight=plan.in_flight(worst),
        needed=_needed(model, options, gpu),
    )


def _needed(model: Architecture, options: Training, target: Target) -> Parallel | None:
    """The fewest data-parallel replicas that fit; experts stay spread as they are."""
    parallel = options.parallel
    unit = parallel.data if parallel.expert > 1 else 1

    def layout(replicas: int) -> Parallel:
        return replace(parallel, data=unit * replicas)

    def fits(replicas: int) -> bool:
        plan = _Plan(model, replace(options, parallel=layout(replicas)), target)
        return all(
            sum(amount.size_bytes for amount in plan.amounts(at)) <= target.total_bytes
            for at in range(parallel.pipeline)
        )

    most = _MOST_REPLICAS // unit if options.zero else 1
    # States shrink with each replica, and nothing grows.
    found = bisect.bisect_left(range(1, most + 1), True, key=fits) + 1
    return layout(found) if found <= most else None


class _Plan:
    """The memory of each stage under one layout."""

    def __init__(self, model: Architecture, options: Training, target: Target) -> None:
        self._model, self._options, self._target = model, options, target
        parallel, policy = options.parallel, policy_of(options.policy)
        cut = parallel.cut(expert_tensor=parallel.tensor)
        self._stages = parallel.stage_layers(model)
        replicas = parallel.data * parallel.context
        experts = parallel.tensor * replicas // (cut.expert * cut.expert_tensor)
        self._states = StatePlan(policy, options.optimizer, options.zero, cut, replicas, experts)
        row = options.sequence * (options.micro_batch if options.packed else 1)
        self._keeping = Keeping(
            hidden=model.hidden,
            element=policy.element_bytes,
            stream_element=4 if policy.cached else policy.element_bytes,
            linear_input=FLOAT8_INPUT if policy.float8 else policy.element_bytes,
            cut=cut,
            stream_ranks=parallel.tensor if options.sequence_parallel else 1,
            row_tokens=row,
            flash=options.flash,
            dropout=model.dropout,
            recompute_core=options.recompute == "selective",
            fused=options.fused,
        )
        self._tokens = options.sequence * options.micro_batch // parallel.context

    def rank_name(self, stage: int) -> str:
        """The rank in words."""
        parallel = self._options.parallel
        if parallel.gpus == 1:
            return "training, one GPU"
        if parallel.pipeline == 1:
            return f"training, each rank, {parallel.gpus} GPUs"
        number = f"pipeline stage {stage + 1} of {parallel.pipeline}"
        return f"training, a rank of {number}, {parallel.gpus} GPUs"

    def trainable(self) -> int:
        """Parameters that are trained, all ranks together."""
        weights = [
            weight
            for at in range(len(self._stages))
            for weight, _ in stage_weights(self._model, self._stages, at)
        ]
        tied = self._model.tied and len(self._stages) > 1
        trained = self._trained(weights)
        total = sum(weight.elements for weight in trained if not weight.buffer)
        # The copy of a tied matrix on the last stage is the same parameter.
        copied = embedding_weights(self._model)[0].elements
        return total - (copied if tied and not self._options.lora_rank else 0)

    def in_flight(self, stage: int) -> int:
        """Micro-batches of a stage whose backward is still to come, under 1F1B."""
        return min(self._options.microbatches, self._options.parallel.pipeline - stage)

    def amounts(self, stage: int) -> tuple[Amount, ...]:
        """The memory of a stage by category."""
        weights = [weight for weight, _ in stage_weights(self._model, self._stages, stage)]
        states = states_of(self._trained(weights), self._states)
        found = self._frozen(stage) if self._options.lora_rank else []
        what = f"{states.parameters:,} parameters" + self._sharding()
        found += [
            exact("adapters" if found else "weights", math.ceil(states.weights), what),
            self._gradients(stage, states),
            exact("optimizer state", math.ceil(states.optimizer), self._options.optimizer),
        ]
        found += self._copies(weights, states)
        found += self._gathered(stage)
        found += self._activations(stage)
        found += communicators(self._options.parallel, self._target)
        workspaces = training_workspaces(self._target, biased=any(map(has_bias, weights)))
        return (*found, workspaces, outside_allocator(self._target))

    def _gradients(self, stage: int, states: States) -> Amount:
        """All gradients, or what of them does not take the place of activations."""
        size = math.ceil(states.gradients)
        if self._options.keep_gradients or self._options.microbatches > 1:
            return exact("gradients", size)
        freed = sum(amount.size_bytes for amount in self._activations(stage))
        where = "allocated while activations are freed" if freed else ""
        return exact("gradients", max(size + self._summed() - freed, 0), where)

    def _summed(self) -> int:
        """A tied matrix has a gradient of each use, which autograd adds into a third tensor."""
        if not self._model.tied or len(self._stages) > 1 or self._options.lora_rank:
            return 0
        plan = self._states
        matrix = math.prod(plan.cut.shape(embedding_weights(self._model)[0]))
        return 2 * matrix * plan.policy.gradient_bytes

    def _trained(self, weights: list[Weight]) -> list[Weight]:
        rank = self._options.lora_rank
        return adapters_of(weights, rank, self._options.lora_targets) if rank else weights

    def _sharding(self) -> str:
        plan = self._states
        if plan.zero == 0 or plan.dense_ranks == 1:
            return ""
        return f", ZeRO {plan.zero} over {plan.dense_ranks}"

    def _frozen(self, stage: int) -> list[Amount]:
        """Frozen weights, and the largest matrix while it is dequantised."""
        storage = storage_of(self._options.frozen, self._model)
        pieces = list(stage_weights(self._model, self._stages, stage))
        size = sum(weight_bytes(self._model, pieces, self._states.cut, storage).values())
        shared = self._states.dense_ranks if self._options.zero >= 3 else 1
        found = [exact("frozen weights", math.ceil(size / shared), storage.name)]
        if storage.name not in ("bf16", "fp16", "fp32"):
            largest = max(
                math.prod(self._states.cut.shape(weight))
                for weight, _ in pieces
                if weight.quantised
            )
            found.append(exact("dequantised matrix", largest * self._keeping.element))
        return found

    def _copies(self, weights: list[Weight], states: States) -> list[Amount]:
        """What autocast caches: a 16-bit copy of each matrix that is trained and multiplied."""
        policy = self._states.policy
        if not policy.cached or self._options.lora_rank or self._options.zero >= 3:
            return []
        ends = ("head", "embedding") if self._model.tied else ("head",)
        matrices = [weight for weight in weights if weight.quantised or weight.part in ends]
        count = states_of(matrices, replace(self._states, zero=0)).parameters
        size = policy.element_bytes * min(count, states.parameters)
        return [exact("autocast's copies of weights", size)]

    def _gathered(self, stage: int) -> list[Amount]:
        """Under ZeRO 3: two layers, the gradient of one, and what is outside layers."""
        plan = self._states
        if plan.zero < 3 or plan.dense_ranks == 1:
            return []
        layers = set(self._stages[stage])
        sizes = [gathered_bytes(layer_weights(layer, self._model.hidden), plan) for layer in layers]
        ends: list[Weight] = []
        if stage == 0:
            ends += embedding_weights(self._model)
        if stage == len(self._stages) - 1:
            ends += head_weights(self._model)
        layer, outside = max(sizes, default=0.0), gathered_bytes(ends, plan)
        gradients = 0 if self._options.lora_rank else 1
        size = math.ceil((_BUSY_LAYERS + gradients) * layer + outside)
        low, high = math.ceil(layer), math.ceil((2 * _BUSY_LAYERS + gradients) * layer) + size
        held = ["two layers", *(["one layer's gradients"] if gradients else [])]
        held += dict.fromkeys(weight.part for weight in ends)
        return [Amount("gathered layers", size, low, high, ", ".join(held))]

    def _activations(self, stage: int) -> list[Amount]:
        layers, tokens, keeping = self._stages[stage], self._tokens, self._keeping
        flight = self.in_flight(stage)
        whole = {layer: layer_bytes(layer, keeping) for layer in set(layers)}
        working = 0.0
        if self._options.recompute == "full":
            kept = len(layers) * keeping.stream
            working = max(whole.values(), default=0.0) * tokens
        else:
            kept = sum(whole[layer] * count for layer, count in Counter(layers).items())
        size = kept * tokens * flight
        if stage == 0:
            size += keeping.mask * tokens * flight
        found = [
            _spread("activations", size, counted(flight, "micro-batch", "micro-batches"), layers)
        ]
        last = stage == len(self._stages) - 1
        loss = self._loss_bytes() if last else 0.0
        if last:
            like = self._model.layers[-1]
            norm = keeping.norm(native=like.norm_bias, wide=like.wide_norms)
            ends = (norm + keeping.stream_input) * tokens
            found.append(_spread("logits and loss", loss + ends, self._options.loss, ()))
        # A layer is computed again after the loss has been freed.
        if working > loss:
            found.append(_spread("layer computed again", working - loss, "", layers))
        return found

    def _loss_bytes(self) -> float:
        """The logits, their gradients and what the loss keeps."""
        element, model = self._keeping.element, self._model
        if self._options.loss == "fused":
            return self._tokens * model.hidden * (2 * element + 4)
        share = -(-model.vocabulary // self._states.cut.tensor)
        # In fp32 the logarithms of the softmax, their gradient and that of the logits; the logits
        # themselves have been freed.
        wide = 12 if self._options.loss == "plain" else element + 4
        if model.capped_logits:
            wide += element  # the result of tanh
        return self._tokens * share * wide


def _spread(name: str, size: float, detail: str, layers: tuple[Layer, ...]) -> Amount:
    """An amount of the closed form: kernels differ, and experts' tokens are uneven."""
    routed = any(isinstance(layer.feed_forward, Mixture) for layer in layers)
    high = 2.0 if routed else 1.4
    return Amount(name, math.ceil(size), math.ceil(0.9 * size), math.ceil(high * size), detail)
