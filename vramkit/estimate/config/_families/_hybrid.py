"""Decoders in which linear attention or state spaces replace most of the attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import (
    Architecture,
    Layer,
    LinearAttention,
    Mixer,
    StateSpace,
)
from vramkit.estimate.config._families._common import (
    FULL,
    LINEAR,
    attention_of,
    depth,
    mlp_of,
    model_of,
    window_kinds,
)
from vramkit.estimate.config._families._mixtures import qwen_feed_forward
from vramkit.estimate.config._fields import Fields


def _qwen3_next(fields: Fields) -> Architecture:
    layers = depth(fields)
    every = fields.integer("full_attention_interval", default=4)
    kinds = window_kinds(fields, [LINEAR if (at + 1) % every else FULL for at in range(layers)])
    bias = fields.flag("attention_bias")
    full = replace(
        attention_of(fields, qkv_bias=bias, out_bias=bias, head_norms=True),
        gated=True,
        partial_rotary=True,
    )
    linear = LinearAttention(
        key_heads=fields.integer("linear_num_key_heads"),
        value_heads=fields.integer("linear_num_value_heads"),
        key_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        kernel=fields.integer("linear_conv_kernel_dim"),
    )
    networks = qwen_feed_forward(fields)
    return model_of(
        fields,
        [
            Layer(linear if kind == LINEAR else full, network, wide_norms=True)
            for kind, network in zip(kinds, networks, strict=True)
        ],
    )


def _state_space(fields: Fields, hidden: int) -> StateSpace:
    heads = fields.integer("mamba_n_heads")
    inner = hidden * fields.integer("mamba_expand")
    if inner % heads:
        raise InvalidArgumentError(
            f"{fields.where}: mamba_n_heads ({heads}) must divide mamba_expand x hidden_size "
            f"({inner:,})"
        )
    return StateSpace(
        heads=heads,
        head_dim=inner // heads,
        state_dim=fields.integer("mamba_d_state"),
        groups=fields.integer("mamba_n_groups"),
        kernel=fields.integer("mamba_d_conv"),
        conv_bias=fields.flag("mamba_conv_bias", default=True),
        bias=fields.flag("mamba_proj_bias"),
    )


def _bamba(fields: Fields) -> Architecture:
    attending = set(fields.integers("attn_layer_indices") or ())
    bias = fields.flag("attention_bias")
    full = attention_of(fields, qkv_bias=bias, out_bias=bias)
    state: Mixer = _state_space(fields, fields.integer("hidden_size"))
    mlp = mlp_of(fields, bias=fields.flag("mlp_bias"))
    return model_of(
        fields,
        [Layer(full if at in attending else state, mlp) for at in range(depth(fields))],
    )


READERS: dict[str, Callable[[Fields], Architecture]] = {
    "qwen3_next": _qwen3_next,
    "bamba": _bamba,
}
