"""Llama 4: chunked attention, dense layers and mixtures in turn, and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import Architecture, Layer, Mixture, Mlp, Weight
from vramkit.estimate.config._families._common import (
    CHUNKED,
    FULL,
    attention_of,
    depth,
    mlp_of,
    model_of,
    window_kinds,
)
from vramkit.estimate.config._families._vision import encoder_weights
from vramkit.estimate.config._fields import Fields


def _text(fields: Fields) -> Architecture:
    layers = depth(fields)
    every = fields.integer("no_rope_layer_interval", default=4)
    kinds = window_kinds(fields, [CHUNKED if (at + 1) % every else FULL for at in range(layers)])
    bias = fields.flag("attention_bias")
    # The norms of queries and keys have no weights here.
    full = attention_of(fields, qkv_bias=bias, out_bias=bias)
    chunked = replace(
        full,
        window=fields.optional("attention_chunk_size"),
        chunked=True,
        plain_norms=fields.flag("use_qk_norm", default=True),
    )
    mixture = Mixture(
        experts=fields.integer("num_local_experts"),
        chosen=fields.integer("num_experts_per_tok"),
        expert=mlp_of(fields),
        shared=mlp_of(fields),
        all_tokens=True,
    )
    step = fields.integer("interleave_moe_layer_step", default=1)
    listed = fields.integers("moe_layers")
    sparse = set(range(step - 1, layers, step) if listed is None else listed)
    dense = Mlp(fields.integer("intermediate_size_mlp"))
    return model_of(
        fields,
        [
            Layer(chunked if kind == CHUNKED else full, mixture if at in sparse else dense)
            for at, kind in enumerate(kinds)
        ],
    )


def _vision(fields: Fields, hidden: int) -> tuple[Weight, ...]:
    width, patch = fields.integer("hidden_size"), fields.integer("patch_size")
    patches = (fields.integer("image_size") // patch) ** 2 + 1
    joined = fields.integer("intermediate_size")
    middle, out = fields.integer("projector_input_dim"), fields.integer("projector_output_dim")
    return (
        *encoder_weights(fields),
        Weight("vision", "patch_embedding", (3 * patch**2, width)),
        Weight("vision", "class and position embeddings", (patches + 1, width)),
        Weight("vision", "layernorm_pre and _post", (4, width)),
        Weight("vision", "vision_adapter.fc1", (middle, joined)),
        Weight("vision", "vision_adapter.fc2", (out, out)),
        Weight("vision", "multi_modal_projector", (hidden, fields.integer("vision_output_dim"))),
    )


def _multimodal(fields: Fields) -> Architecture:
    inner = fields.mapping("text_config")
    if inner is None:
        raise InvalidArgumentError(f"{fields.where}: the configuration has no 'text_config'")
    text = Fields({"model_type": "llama4_text", **inner}, f"{fields.where}, text_config")
    model = replace(_text(text), name=fields.where, model_type="llama4")
    images = fields.mapping("vision_config")
    if images is None:
        return model
    vision = Fields(images, f"{fields.where}, vision_config")
    return replace(
        model,
        vision=_vision(vision, model.hidden),
        dtype=fields.text("torch_dtype", "dtype", default=model.dtype),
        quantisation=fields.mapping("quantization_config") or {},
        notes=(*model.notes, *vision.notes),
    )


READERS: dict[str, Callable[[Fields], Architecture]] = {
    "llama4_text": _text,
    "llama4": _multimodal,
}
