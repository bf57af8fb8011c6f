"""GPT-2, whose layers are those of GPT-3 and of Megatron-LM's published figures."""

from __future__ import annotations

from collections.abc import Callable

from vramkit.estimate.config._architecture import Architecture, Attention, Layer, Mlp
from vramkit.estimate.config._fields import MOST_LAYERS, Fields


def _gpt2(fields: Fields) -> Architecture:
    hidden, heads = fields.integer("n_embd"), fields.integer("n_head")
    positions = fields.integer("n_positions")
    inner = fields.integer("n_inner", default=4 * hidden)
    if hidden % heads:
        raise fields.wrong("n_embd", hidden, f"divisible by n_head ({heads})")
    mixer = Attention(heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    layer = Layer(mixer, Mlp(inner, gated=False, bias=True), norm_bias=True)
    return Architecture(
        name=fields.where,
        model_type="gpt2",
        hidden=hidden,
        vocabulary=fields.integer("vocab_size"),
        layers=(layer,) * fields.integer("n_layer", most=MOST_LAYERS),
        tied=fields.flag("tie_word_embeddings", default=True),
        max_context=positions,
        dtype=fields.text("torch_dtype", "dtype", default="float32"),
        positions=positions,
        dropout=True,
        notes=tuple(fields.notes),
    )


READERS: dict[str, Callable[[Fields], Architecture]] = {"gpt2": _gpt2}
