"""Memory of serving a model: weights, caches, states, and allowances for the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vramkit.errors import InvalidArgumentError
from vramkit.estimate._target import Target
from vramkit.estimate._targets import find_target
from vramkit.estimate.config._architecture import (
    Architecture,
    Attention,
    Layer,
    LinearAttention,
    StateSpace,
)
from vramkit.estimate.config._cache import CacheOptions, cached_tokens, sequence_bytes, token_bytes
from vramkit.estimate.config._eager_serving import eager_activation_bytes
from vramkit.estimate.config._overhead import (
    communicators,
    has_bias,
    outside_allocator,
    serving_workspaces,
)
from vramkit.estimate.config._parallel import Cut, Parallel, check_parallel
from vramkit.estimate.config._parameters import model_weights
from vramkit.estimate.config._reading import Model, read_model
from vramkit.estimate.config._results import (
    Amount,
    RankEstimate,
    checked_options,
    exact,
    usable_bytes,
)
from vramkit.estimate.config._schemes import DTYPE_BYTES, base_dtype
from vramkit.estimate.config._serving_activations import activation_bytes
from vramkit.estimate.config._stored import stage_weights, storage_of, weight_bytes
from vramkit.estimate.config._types import check_types
from vramkit.units import counted, format_mib

_GIB = 1 << 30
_LONGEST = 1 << 28
_MOST_SEQUENCES = 1 << 20
_NODE = 8
_MOST_STAGES = 32


@dataclass(frozen=True)
class Serving:
    """How a model is served.

    Attributes:
        weights: The weights' quantisation: ``"checkpoint"`` as the configuration says, a dtype, a
            scheme such as ``"fp8-block"``, ``"int8"``, ``"awq"``, ``"mxfp4"``, or a kind of GGUF
            such as ``"Q4_K_M"``.
        cache: Dtype of the cache: ``"auto"`` (as the weights, at least 16 bits), ``"bf16"``,
            ``"fp16"``, ``"fp8"``, ``"int8"``, ``"fp32"``.
        context: Tokens of each sequence, prompt and answer.
        batch: Sequences at once, of all data-parallel replicas together.
        block_tokens: Tokens of a cache block; 1 for a cache that is not paged.
        windows: Whether the engine frees what has left a layer's window.
        chunk_tokens: Most tokens of one forward pass.
        cuda_graphs: Whether the engine captures CUDA graphs.
        parallel: How ranks split the model.
        fused: Whether an engine's kernels compute. The modules of transformers do not have them:
            they read the prompts of all sequences at once, keep caches without blocks, windows
            whole while they read, and capture no graphs.
        utilisation: Part of the GPU's memory that the engine may use, for ``fits`` and the answers.
    """

    weights: str = "checkpoint"
    cache: str = "auto"
    context: int = 8192
    batch: int = 1
    block_tokens: int = 16
    windows: bool = True
    chunk_tokens: int = 8192
    cuda_graphs: bool = True
    parallel: Parallel = field(default_factory=Parallel)
    fused: bool = True
    utilisation: float = 0.95

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_types(self)
        check_parallel(self.parallel)
        limits = {
            "context": _LONGEST,
            "batch": _MOST_SEQUENCES,
            "block_tokens": 1 << 16,
            "chunk_tokens": _LONGEST,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidArgumentError(
                    f"{name} must be an integer from 1 to {most:,}, got {value!r}"
                )
        if not 0 < self.utilisation <= 1:
            raise InvalidArgumentError(
                f"utilisation must be above 0 and at most 1, got {self.utilisation!r}"
            )
        if self.cache not in ("auto", *DTYPE_BYTES):
            raise InvalidArgumentError(
                f"cache {self.cache!r} is not known; use auto, bf16, fp16, fp8, int8 or fp32"
            )
        if self.parallel.context > 1:
            raise InvalidArgumentError(
                "context parallelism is for training; use tensor or pipeline while serving"
            )


@dataclass(frozen=True)
class ServingEstimate(RankEstimate):
    """Memory of the rank that needs most, while a model is served.

    Attributes:
        options: How it is served.
        cache_bytes_per_token: Bytes of all layers' caches for one further token of a sequence
            beyond all windows, on all tensor-parallel ranks of one replica without copies.
        largest_context: Longest context that fits at the batch, 0 if none does; it may exceed
            ``max_context``. 268,435,456 stands for no limit.
        largest_batch: Most sequences that fit at the context, 0 if none does.
        needed: The smallest layout found that fits on the target, ``None`` if none does.
        max_context: Most positions, as the configuration says; ``None``: it does not.
    """

    options: Serving
    cache_bytes_per_token: int
    largest_context: int
    largest_batch: int
    needed: Parallel | None
    max_context: int | None

    @property
    def utilisation(self) -> float:
        """Part of a GPU's memory that the engine may use."""
        return self.options.utilisation

    def answers(self) -> list[tuple[str, str]]:
        """The largest context and batch, and the GPUs needed."""
        part = format_mib(self.usable_bytes)
        found = [
            ("cache for a further token", self._cache_in_words()),
            (
                f"largest context at batch {self.options.batch:,}",
                f"{self._context_in_words()} in {part}",
            ),
            (
                f"largest batch at context {self.options.context:,}",
                f"{counted(self.largest_batch, 'sequence')} in {part}",
            ),
        ]
        if self.needed is None:
            text = f"more than {_NODE * _MOST_STAGES}, or a layout of your own"
        else:
            layout = f"tensor {self.needed.tensor} x pipeline {self.needed.pipeline}"
            text = f"{self.needed.gpus} ({layout})"
        return [*found, (f"GPUs needed ({self.target.name})", text)]

    def _cache_in_words(self) -> str:
        if self.cache_bytes_per_token:
            return f"{self.cache_bytes_per_token:,} bytes"
        return "0 bytes (each layer keeps a window or a state of fixed size)"

    def _context_in_words(self) -> str:
        if self.largest_context >= _LONGEST:
            fitting = "any number of tokens"
        else:
            fitting = f"{self.largest_context:,} tokens"
        if self.max_context is None or self.largest_context <= self.max_context:
            return fitting
        return f"{fitting} (the configuration has {self.max_context:,} positions)"


def estimate_serving(
    model: Model, options: Serving | None = None, *, target: str | Target = "h100"
) -> ServingEstimate:
    """Estimate the memory of serving a model.

    Weights, caches and states follow from shapes and are exact for an engine that stores them as
    the options say. Activations, CUDA graphs, communicators and the context are allowances with
    intervals.

    Args:
        model: What :func:`~vramkit.estimate.config.read_model` takes or gives.
        options: How it is served; the defaults of :class:`Serving` without.
        target: The GPU.

    Raises:
        ArgumentTypeError: ``model`` or ``options`` is something else.
        InvalidArgumentError: The ranks cannot split the model, or an option is not known.

    >>> from vramkit.estimate.config import read_model
    >>> estimate = estimate_serving(read_model("deepseek-v3"), Serving(batch=8), target="h200")
    >>> estimate.cache_bytes_per_token, estimate.fits(), estimate.needed.gpus
    (70272, False, 8)
    """
    model, options = read_model(model), checked_options(options, Serving)
    gpu = find_target(target)
    plan = _Plan(model, options, gpu)
    worst = plan.worst_stage(options.batch, options.context)
    limit = usable_bytes(gpu, options.utilisation)
    return ServingEstimate(
        model=model.name,
        rank=plan.rank_name(worst),
        gpus=options.parallel.gpus,
        target=gpu,
        amounts=plan.amounts(worst, options.batch, options.context),
        assumptions=_assumptions(model, options, plan, gpu),
        options=options,
        cache_bytes_per_token=sum(
            token_bytes(layer.mixer, plan.cache.element_bytes)
            for layer in model.layers
            if not (options.windows and isinstance(layer.mixer, Attention) and layer.mixer.window)
        ),
        largest_context=_largest(
            lambda context: plan.total(options.batch, context) <= limit, _LONGEST
        ),
        largest_batch=_largest(
            lambda batch: plan.total(batch, options.context) <= limit, _MOST_SEQUENCES
        ),
        needed=_needed(model, options, gpu, limit),
        max_context=model.max_context,
    )


class _Plan:
    """The memory of each stage under one layout; weights are summed once."""

    def __init__(self, model: Architecture, options: Serving, target: Target) -> None:
        parallel = options.parallel
        left = max(parallel.tensor // parallel.expert, 1)
        self._cut: Cut = parallel.cut(expert_tensor=left)
        self._stages = parallel.stage_layers(model)
        self._model, self._options, self._target = model, options, target
        self.storage = storage_of(options.weights, model)
        element = 4 if self.storage.name == "fp32" else 2
        if options.cache != "auto":
            element = DTYPE_BYTES[options.cache]
        self.cache = CacheOptions(element, 4, options.block_tokens, options.windows)
        if not options.fused:
            self.cache = CacheOptions(element, 4, 1, keeps_windows=False, sparse_latents=False)
        self._weights = [
            weight_bytes(model, stage_weights(model, self._stages, at), self._cut, self.storage)
            for at in range(len(self._stages))
        ]

    def rank_name(self, stage: int) -> str:
        """The rank in words."""
        stages, gpus = len(self._stages), self._options.parallel.gpus
        if gpus == 1:
            return "serving, one GPU"
        where = f"a rank of pipeline stage {stage + 1} of {stages}" if stages > 1 else "each rank"
        return f"serving, {where}, {gpus} GPUs"

    def total(self, batch: int, context: int) -> int:
        """Bytes of the stage that needs most."""
        return max(
            sum(amount.size_bytes for amount in self.amounts(at, batch, context))
            for at in range(len(self._stages))
        )

    def worst_stage(self, batch: int, context: int) -> int:
        """The stage that needs most."""
        totals = [
            sum(amount.size_bytes for amount in self.amounts(at, batch, context))
            for at in range(len(self._stages))
        ]
        return totals.index(max(totals))

    def amounts(self, stage: int, batch: int, context: int) -> tuple[Amount, ...]:
        """The memory of a stage by category."""
        options, parallel = self._options, self._options.parallel
        local_batch = -(-batch // parallel.data)
        layers: tuple[Layer, ...] = self._stages[stage]
        cache, state = sequence_bytes(layers, context, self.cache, parallel.tensor)
        peak, tokens = self._activations(stage, local_batch, context)
        found = [exact(f"weights: {part}", size) for part, size in self._weights[stage].items()]
        per_layer = {cached_tokens(layer.mixer, context, self.cache) for layer in layers}
        held = f"{local_batch:,} x {max(per_layer, default=0):,} tokens in whole blocks"
        found.append(exact("KV cache", cache * local_batch, held))
        if state:
            found.append(
                exact("recurrent states", state * local_batch, counted(local_batch, "sequence"))
            )
        detail = f"{tokens:,} tokens at once"
        if options.fused:
            found.append(Amount("activations", peak, peak // 2, 3 * peak, detail))
        else:
            found.append(Amount("activations", peak, peak * 9 // 10, peak * 14 // 10, detail))
        if options.cuda_graphs and options.fused:
            graphs = Amount("CUDA graphs", 3 * _GIB // 4, _GIB // 10, 5 * _GIB // 2, "assumed")
            found.append(graphs)
        found += communicators(parallel, self._target)
        biased = options.fused or any(map(has_bias, model_weights(self._model)))
        workspaces = serving_workspaces(self._target, biased=biased)
        return (*found, workspaces, outside_allocator(self._target))

    def _activations(self, stage: int, batch: int, context: int) -> tuple[int, int]:
        """Bytes at the peak of one forward pass, and its tokens."""
        layers, last = self._stages[stage], stage == len(self._stages) - 1
        sequences = batch if last else 0
        if not self._options.fused:
            peak = eager_activation_bytes(self._model, layers, self._cut, context, batch)
            return peak, batch * context
        tokens = min(self._options.chunk_tokens, batch * context)
        return activation_bytes(self._model, layers, self._cut, tokens, sequences), tokens


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number that fits; what fits is monotone."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _needed(model: Architecture, options: Serving, target: Target, limit: int) -> Parallel | None:
    """The fewest GPUs: tensor ranks of one node first, then pipeline stages."""
    layouts = [(1 << power, 1) for power in range(4)]
    layouts += [(_NODE, stages) for stages in range(2, _MOST_STAGES + 1)]
    for tensor, pipeline in layouts:
        # Experts are spread over all ranks of a stage if they are at all.
        expert = tensor if options.parallel.expert > 1 else 1
        parallel = Parallel(tensor=tensor, pipeline=pipeline, expert=expert)
        try:
            plan = _Plan(model, replace(options, parallel=parallel), target)
            if plan.total(options.batch, options.context) <= limit:
                return parallel
        except InvalidArgumentError:
            continue
    return None


def _assumptions(
    model: Architecture, options: Serving, plan: _Plan, target: Target
) -> tuple[str, ...]:
    left_dtype = plan.storage.left_dtype or base_dtype(model)
    found = [f"Weights: {plan.storage.name}; unquantised: {plan.storage.left} ({left_dtype})."]
    if options.weights == "checkpoint" and plan.storage.name in ("bf16", "fp16"):
        saved = f"converted from the checkpoint's {model.dtype}"
        same = base_dtype(model) == plan.storage.name and model.dtype != "float32"
        found = [f"Weights: {plan.storage.name}, {'as in the checkpoint' if same else saved}."]
    if model.prediction:
        found.append("The checkpoint's layers for multi-token prediction are not loaded.")
    windowed = any(
        isinstance(layer.mixer, Attention) and layer.mixer.window for layer in model.layers
    )
    if windowed:
        kept = "keep their window only" if options.windows else "keep all tokens"
        found.append(f"Layers with a window {kept}.")
    if any(isinstance(layer.mixer, LinearAttention | StateSpace) for layer in model.layers):
        found.append("Recurrent states are fp32, those of convolutions 16-bit, one a sequence.")
    if model.max_context is not None and options.context > model.max_context:
        found.append(
            f"The context exceeds the {model.max_context:,} positions of the configuration."
        )
    found.append(
        "Activations: the largest layer's intermediate results of one forward pass with "
        "FlashAttention, and the logits of one token a sequence; a half to three times of it is "
        "plausible."
        if options.fused
        else "Activations: what the modules of transformers hold while they read all prompts at "
        "once, and the logits of one token a sequence."
    )
    if options.cuda_graphs and options.fused:
        found.append("CUDA graphs: an allowance; vLLM's users report up to 2.4 GiB (vllm#7553).")
    if options.parallel.expert > 1:
        found.append("Experts receive equally many tokens.")
    if target.assumed:
        found.append(target.assumed)
    return (*found, *model.notes)
