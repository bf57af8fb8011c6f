"""DeepSeek V2, V3 and V3.2, and Kimi K2, which has V3's architecture."""

from __future__ import annotations

from collections.abc import Callable

from vramkit.estimate.config._architecture import (
    Architecture,
    Indexer,
    LatentAttention,
    Layer,
    Mixture,
    Mlp,
)
from vramkit.estimate.config._families._common import depth, mlp_of, model_of
from vramkit.estimate.config._fields import MOST_LAYERS, Fields


def _latent(fields: Fields) -> LatentAttention:
    indexer = None
    if fields.text("model_type") == "deepseek_v32":
        indexer = Indexer(
            heads=fields.integer("index_n_heads"),
            head_dim=fields.integer("index_head_dim"),
            chosen_tokens=fields.integer("index_topk"),
        )
    return LatentAttention(
        heads=fields.integer("num_attention_heads"),
        q_rank=fields.optional("q_lora_rank"),
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
        bias=fields.flag("attention_bias"),
        indexer=indexer,
    )


def _mixture(fields: Fields) -> Mixture:
    inner = fields.integer("moe_intermediate_size")
    shared = fields.count("n_shared_experts", default=0)
    # DeepSeek V2 balances by losses, its successors by a correction of the scores.
    second = fields.text("model_type") == "deepseek_v2"
    return Mixture(
        experts=fields.integer("n_routed_experts"),
        chosen=fields.integer("num_experts_per_tok"),
        expert=Mlp(inner),
        shared=Mlp(inner * shared) if shared else None,
        correction=not second,
        wide_router=True,
    )


def _deepseek(fields: Fields) -> Architecture:
    mixer, mixture = _latent(fields), _mixture(fields)
    dense = fields.count("first_k_dense_replace", default=0)
    step = fields.integer("moe_layer_freq", default=1)
    layers = [
        Layer(mixer, mlp_of(fields) if at < dense or at % step else mixture)
        for at in range(depth(fields))
    ]
    extra = fields.count("num_nextn_predict_layers", default=0, most=MOST_LAYERS)
    return model_of(fields, layers, prediction=[Layer(mixer, mixture)] * extra)


READERS: dict[str, Callable[[Fields], Architecture]] = dict.fromkeys(
    ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"), _deepseek
)
