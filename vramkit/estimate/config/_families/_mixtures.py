"""Decoders with mixtures of experts and ordinary attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vramkit.estimate.config._architecture import Architecture, Layer, Mixture, Mlp
from vramkit.estimate.config._families._common import (
    FULL,
    SLIDING,
    attention_of,
    depth,
    mlp_of,
    model_of,
    window_kinds,
)
from vramkit.estimate.config._families._dense import qwen_windows
from vramkit.estimate.config._fields import MOST_LAYERS, Fields


def _mixtral(fields: Fields) -> Architecture:
    mixer = attention_of(fields, window=fields.optional("sliding_window"))
    mixture = Mixture(
        experts=fields.integer("num_local_experts"),
        chosen=fields.integer("num_experts_per_tok"),
        expert=mlp_of(fields),
    )
    return model_of(fields, [Layer(mixer, mixture)] * depth(fields))


def qwen_mixture(fields: Fields) -> Mixture:
    """The mixture of Qwen 2, 3 and 3-Next; the shared expert is missing in Qwen 3."""
    shared = fields.optional("shared_expert_intermediate_size")
    return Mixture(
        experts=fields.integer("num_experts"),
        chosen=fields.integer("num_experts_per_tok"),
        expert=Mlp(fields.integer("moe_intermediate_size")),
        shared=None if shared is None else Mlp(shared),
        shared_gate=shared is not None,
    )


def qwen_feed_forward(fields: Fields) -> list[Mlp | Mixture]:
    """For each layer: every ``decoder_sparse_step``-th is a mixture, but not the ones listed."""
    mixture = qwen_mixture(fields)
    step = fields.integer("decoder_sparse_step", default=1)
    dense = set(fields.integers("mlp_only_layers") or ())
    return [
        mlp_of(fields) if at in dense or (at + 1) % step else mixture for at in range(depth(fields))
    ]


def _qwen_moe(fields: Fields) -> Architecture:
    third = fields.text("model_type") == "qwen3_moe"
    bias = fields.flag("attention_bias") if third else fields.flag("qkv_bias", default=True)
    layers = [
        Layer(
            attention_of(
                fields, window=window, qkv_bias=bias, out_bias=bias and third, head_norms=third
            ),
            network,
        )
        for window, network in zip(qwen_windows(fields), qwen_feed_forward(fields), strict=True)
    ]
    return model_of(fields, layers)


def _gpt_oss(fields: Fields) -> Architecture:
    layers = depth(fields)
    kinds = window_kinds(fields, [FULL if at % 2 else SLIDING for at in range(layers)])
    window = fields.integer("sliding_window")
    bias = fields.flag("attention_bias", default=True)
    mixture = Mixture(
        experts=fields.integer("num_local_experts"),
        chosen=fields.integer("num_experts_per_tok", "experts_per_token"),
        expert=replace(mlp_of(fields, bias=True), clamped=True),
        router_bias=True,
    )
    mixer = replace(attention_of(fields, qkv_bias=bias, out_bias=bias), sinks=True)
    sliding = replace(mixer, window=window)
    return model_of(
        fields,
        [Layer(sliding if kind == SLIDING else mixer, mixture, wide_norms=True) for kind in kinds],
    )


def _glm4_moe(fields: Fields) -> Architecture:
    mixer = replace(
        attention_of(
            fields, qkv_bias=fields.flag("attention_bias"), head_norms=fields.flag("use_qk_norm")
        ),
        partial_rotary=True,
    )
    inner = fields.integer("moe_intermediate_size")
    shared = fields.integer("n_shared_experts")
    mixture = Mixture(
        experts=fields.integer("n_routed_experts"),
        chosen=fields.integer("num_experts_per_tok"),
        expert=Mlp(inner),
        shared=Mlp(inner * shared),
        correction=True,
        wide_router=True,
    )
    dense = fields.count("first_k_dense_replace", default=0)
    layers = [
        Layer(mixer, mlp_of(fields) if at < dense else mixture) for at in range(depth(fields))
    ]
    extra = fields.count("num_nextn_predict_layers", default=0, most=MOST_LAYERS)
    return model_of(fields, layers, prediction=[Layer(mixer, mixture)] * extra)


READERS: dict[str, Callable[[Fields], Architecture]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen_moe,
    "qwen3_moe": _qwen_moe,
    "gpt_oss": _gpt_oss,
    "glm4_moe": _glm4_moe,
}
