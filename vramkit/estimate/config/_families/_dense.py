"""Llama and the dense decoders that differ from it in biases, norms and windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vramkit.estimate.config._architecture import Architecture, Layer
from vramkit.estimate.config._families._common import (
    FULL,
    SLIDING,
    attention_of,
    depth,
    mlp_of,
    model_of,
    window_kinds,
)
from vramkit.estimate.config._fields import Fields


def _llama(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    mixer = attention_of(fields, qkv_bias=bias, out_bias=bias)
    layer = Layer(mixer, mlp_of(fields, bias=fields.flag("mlp_bias")))
    return model_of(fields, [layer] * depth(fields))


def _one_window(fields: Fields) -> Architecture:
    """Mistral and Phi-3: every layer has the window."""
    window = fields.optional("sliding_window")
    fused = fields.text("model_type") == "phi3"
    mixer = replace(attention_of(fields, window=window), fused=fused, partial_rotary=fused)
    mlp = replace(mlp_of(fields), joined=fused)
    return model_of(fields, [Layer(mixer, mlp)] * depth(fields))


def qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    """The window of each layer of a Qwen 2 or 3: the first ``max_window_layers`` have none."""
    layers = depth(fields)
    if not fields.flag("use_sliding_window"):
        return (None,) * layers
    first = fields.integer("max_window_layers", default=28, why="as in transformers' class")
    kinds = window_kinds(fields, [FULL if at < first else SLIDING for at in range(layers)])
    window = fields.integer("sliding_window")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _qwen2(fields: Fields) -> Architecture:
    mlp = mlp_of(fields)
    layers = [
        Layer(attention_of(fields, window=window, qkv_bias=True), mlp)
        for window in qwen_windows(fields)
    ]
    return model_of(fields, layers)


def _qwen3(fields: Fields) -> Architecture:
    mlp, bias = mlp_of(fields), fields.flag("attention_bias")
    layers = [
        Layer(
            attention_of(fields, window=window, qkv_bias=bias, out_bias=bias, head_norms=True), mlp
        )
        for window in qwen_windows(fields)
    ]
    return model_of(fields, layers)


def _glm(fields: Fields) -> Architecture:
    mixer = replace(
        attention_of(fields, qkv_bias=fields.flag("attention_bias")), partial_rotary=True
    )
    sandwich = fields.text("model_type") == "glm4"
    mlp = replace(mlp_of(fields), joined=True)
    layer = Layer(mixer, mlp, norms=4 if sandwich else 2)
    return model_of(fields, [layer] * depth(fields))


READERS: dict[str, Callable[[Fields], Architecture]] = {
    "llama": _llama,
    "mistral": _one_window,
    "phi3": _one_window,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "glm": _glm,
    "glm4": _glm,
}
