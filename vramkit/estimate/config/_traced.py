"""Traces a model that transformers builds from a configuration, on fakes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vramkit.errors import InvalidArgumentError, MissingExtraError
from vramkit.estimate.config._architecture import Architecture, Mixture
from vramkit.estimate.config._reading import Model, read_configuration, read_model
from vramkit.estimate.config._results import RankEstimate, checked_options
from vramkit.estimate.config._serving import Serving, estimate_serving
from vramkit.estimate.config._stored import storage_of
from vramkit.estimate.config._training import estimate_training
from vramkit.estimate.config._training_options import Training

if TYPE_CHECKING:
    import torch

    from vramkit.estimate._estimate import Estimate
    from vramkit.estimate._target import Target

# Types whose architecture transformers has under another name.
_OTHER_TYPES = {"kimi_k2": "deepseek_v3"}
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What plain PyTorch can do on one GPU.
_TRAINABLE: dict[str, tuple[object, ...]] = {
    "policy": ("bf16", "fp32", "autocast"),
    "optimizer": ("adamw", "adamw-8bit", "sgd", "sgd-momentum"),
    "recompute": ("none", "full"),
    "loss": ("plain",),
    "lora_rank": (0,),
}
_SERVABLE: dict[str, tuple[object, ...]] = {"cache": ("auto",)}
# Beside the allocator: a trace has it in the target, and not among its own blocks.
_OUTSIDE = "context and libraries"


def trace_model(
    config: Model,
    options: Serving | Training | None = None,
    *,
    target: str | Target = "h100",
    **tracing: Any,
) -> Estimate:
    """Build a model by transformers on fakes, and trace a training step or an answer.

    Training runs ``loss.backward()`` for each micro-batch, a fused optimizer and ``zero_grad``,
    without a KV cache. Serving reads the prompts of all sequences and makes one token more. Of a
    model with images, the part that reads text is traced.

    Args:
        config: As for :func:`read_model`.
        options: How the model is trained or served, on one GPU; serving by default.
        target: The GPU.
        tracing: Options of :func:`vramkit.estimate.estimate`: ``steps``, ``guess``, ``alloc_conf``
            and ``progress``.

    Raises:
        ArgumentTypeError: ``config`` or ``options`` is something else.
        InvalidArgumentError: transformers does not know the model, or an option is not one of
            plain PyTorch on one GPU.
        MissingExtraError: transformers is not installed.
        UntraceableError: An operator's memory cannot be known.
    """
    from vramkit.estimate._api import estimate

    values = _text_of(read_configuration(config)[0])
    model = read_model(values)
    if isinstance(options, Training):
        _check_training(options, model)
        make_step = _training(values, options)
    else:
        options = checked_options(options, Serving)
        _check(options, _SERVABLE)
        make_step = _serving(values, options, _dtype_of(options, model))
        tracing.setdefault("steps", 1)
    return estimate(step=make_step, target=target, **tracing)


def closed_form_bytes(
    config: Model,
    options: Serving | Training,
    *,
    target: str | Target = "h100",
) -> int:
    """Return what the closed form gives for the requested bytes of :func:`trace_model`."""
    model = read_model(_text_of(read_configuration(config)[0]))
    found: RankEstimate
    if isinstance(options, Training):
        found = estimate_training(model, replace(options, fused=False), target=target)
    else:
        found = estimate_serving(model, replace(options, fused=False), target=target)
    return found.total_bytes - found.amount(_OUTSIDE)


def _text_of(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "vision_config"}


def _check(options: Serving | Training, known: Mapping[str, tuple[object, ...]]) -> None:
    if options.parallel.gpus > 1:
        raise InvalidArgumentError(
            f"a trace is of one GPU, got a layout of {options.parallel.gpus}; leave the ranks out, "
            "or use the closed form"
        )
    for name, values in known.items():
        value = getattr(options, name)
        if value not in values:
            raise InvalidArgumentError(
                f"a model from its configuration can be traced with {name} "
                f"{' or '.join(map(str, values))}, got {value!r}; use the closed form for others"
            )


def _check_training(options: Training, model: Architecture) -> None:
    _check(options, _TRAINABLE)
    mixed = any(isinstance(layer.feed_forward, Mixture) for layer in model.layers)
    if mixed and options.policy != "bf16":
        raise InvalidArgumentError(
            "transformers multiplies experts in groups, which fake tensors can do in bf16 only; "
            f"trace a mixture of experts with policy bf16, got {options.policy!r}"
        )


def _dtype_of(options: Serving, model: Architecture) -> str:
    name = storage_of(options.weights, model).name
    if name not in _DTYPES:
        raise InvalidArgumentError(
            f"weights stored as {name} cannot be traced; give weights bf16, fp16 or fp32, or use "
            "the closed form"
        )
    return _DTYPES[name]


def build_model(values: Mapping[str, Any], dtype: torch.dtype, attention: str | None = None) -> Any:
    """Build a model without weights, on the device that is the default.

    Args:
        values: Its configuration.
        dtype: Its dtype.
        attention: transformers' name of an implementation; None for its own choice.

    Raises:
        InvalidArgumentError: transformers does not know the model.
        MissingExtraError: transformers is not installed.
    """
    fields = {name: value for name, value in values.items() if name != "quantization_config"}
    inner = fields.get("text_config")
    if isinstance(inner, dict):
        fields = {"model_type": f"{fields['model_type']}_text", **inner}
    kind = fields.pop("model_type")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers

            known = transformers.AutoConfig.for_model(_OTHER_TYPES.get(kind, kind), **fields)
            auto = transformers.AutoModelForCausalLM
            return auto.from_config(known, dtype=dtype, attn_implementation=attention)
    except ImportError as err:
        raise MissingExtraError(
            "tracing a model from its configuration needs transformers: pip install "
            "'vramkit[transformers]'; without it use the closed form"
        ) from err
    except (KeyError, ValueError) as err:
        raise InvalidArgumentError(
            f"transformers cannot build a model of type {kind!r} from this configuration: {err}"
        ) from err


def _training(values: dict[str, Any], options: Training) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        import torch

        dtype = torch.bfloat16 if options.policy == "bf16" else torch.float32
        model = build_model(values, dtype, None if options.flash else "eager").to("cuda").train()
        if options.recompute == "full":
            model.gradient_checkpointing_enable()
        optimizer = _optimizer(options.optimizer, model.parameters())
        rows, row = options.micro_batch, options.sequence
        if options.packed:
            rows, row = 1, rows * row
        tokens = torch.zeros(rows, row, dtype=torch.long, device="cuda")

        def step() -> None:
            for _ in range(options.microbatches):
                with torch.autocast("cuda", torch.bfloat16, enabled=options.policy == "autocast"):
                    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=not options.keep_gradients)

        return step

    return make_step


def _optimizer(name: str, parameters: Any) -> Any:
    import torch

    from vramkit.estimate._optimizers import EightBitAdamW

    if name == "adamw":
        return torch.optim.AdamW(parameters, 1e-4, fused=True)
    if name == "adamw-8bit":
        return EightBitAdamW(parameters)
    momentum = 0.9 if name == "sgd-momentum" else 0.0
    return torch.optim.SGD(parameters, 1e-4, momentum=momentum, fused=True)


def _serving(
    values: dict[str, Any], options: Serving, dtype: str
) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        import torch
        import transformers

        model = build_model(values, getattr(torch, dtype)).to("cuda").eval()
        shape = (options.batch, max(options.context - 1, 1))
        prompts = torch.zeros(shape, dtype=torch.long, device="cuda")
        last = torch.zeros(options.batch, 1, dtype=torch.long, device="cuda")

        def step() -> None:
            cache = transformers.DynamicCache(config=model.config)
            with torch.no_grad():
                for tokens in (prompts, last):
                    model(input_ids=tokens, past_key_values=cache, logits_to_keep=1)

        return step

    return make_step
