"""Gemma 1, 2 and 3; the larger ones of the third read images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vramkit.estimate.config._architecture import Architecture, Layer, Weight
from vramkit.estimate.config._families._common import (
    FULL,
    SLIDING,
    attention_of,
    depth,
    mlp_of,
    model_of,
    window_kinds,
)
from vramkit.estimate.config._families._vision import encoder_weights
from vramkit.estimate.config._fields import Fields

# What Google's config.json of the models with images leave to transformers' class.
_GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}


def _gemma(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias")
    mixer = attention_of(fields, qkv_bias=bias, out_bias=bias)
    layer = Layer(mixer, mlp_of(fields), wide_norms=True)
    return model_of(fields, [layer] * depth(fields), tied=True)


def _windowed(
    fields: Fields, pattern: int, *, head_norms: bool, capped_scores: bool = False
) -> Architecture:
    """Every ``pattern``-th layer attends to all tokens, the others to a window."""
    layers, window = depth(fields), fields.integer("sliding_window")
    kinds = window_kinds(fields, [SLIDING if (at + 1) % pattern else FULL for at in range(layers)])
    bias = fields.flag("attention_bias")
    mixer = attention_of(fields, qkv_bias=bias, out_bias=bias, head_norms=head_norms)
    mixer = replace(mixer, capped_scores=capped_scores)
    full = Layer(
        mixer,
        mlp_of(fields),
        norms=4,
        wide_norms=True,
    )
    sliding = replace(full, mixer=replace(mixer, window=window))
    return model_of(fields, [sliding if kind == SLIDING else full for kind in kinds], tied=True)


def _gemma2(fields: Fields) -> Architecture:
    # transformers' class caps them unless the configuration says null.
    scores = not fields.is_null("attn_logit_softcapping")
    model = _windowed(fields, 2, head_norms=False, capped_scores=scores)
    return replace(model, capped_logits=not fields.is_null("final_logit_softcapping"))


def _gemma3_text(fields: Fields) -> Architecture:
    pattern = fields.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _windowed(fields, pattern, head_norms=True)


def _gemma3(fields: Fields) -> Architecture:
    inner = dict(fields.mapping("text_config") or {})
    inner.setdefault("model_type", "gemma3_text")
    assumed = {name: value for name, value in _GEMMA3_DEFAULTS.items() if inner.get(name) is None}
    text = Fields({**inner, **assumed}, f"{fields.where}, text_config")
    text.notes += [
        f"{name} is not in the text_config: {value:,}, as in transformers' class."
        for name, value in assumed.items()
    ]
    model = _gemma3_text(text)
    images = fields.mapping("vision_config")
    if images is None:
        return replace(model, name=fields.where, model_type="gemma3")
    vision = Fields(images, f"{fields.where}, vision_config")
    width = vision.integer("hidden_size")
    patches = (vision.integer("image_size") // vision.integer("patch_size")) ** 2
    rows = (patches + 1) * width + 2 * width
    weights = (
        *encoder_weights(vision),
        Weight("vision", "patch_embedding", (3 * vision.integer("patch_size") ** 2, width)),
        Weight("vision", "embeddings", (rows,)),
        Weight("vision", "mm_input_projection", (width, model.hidden)),
        Weight("vision", "mm_soft_emb_norm", (width,)),
    )
    return replace(
        model,
        name=fields.where,
        model_type="gemma3",
        dtype=fields.text("torch_dtype", "dtype", default=model.dtype),
        vision=weights,
        quantisation=fields.mapping("quantization_config") or {},
        notes=(*model.notes, *vision.notes),
    )


READERS: dict[str, Callable[[Fields], Architecture]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "gemma3": _gemma3,
}
