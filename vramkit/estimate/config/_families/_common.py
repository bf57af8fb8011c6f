"""What the configurations of most decoders share."""

from __future__ import annotations

from collections.abc import Sequence

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import Architecture, Attention, Layer, Mlp
from vramkit.estimate.config._fields import MOST_LAYERS, Fields

FULL, SLIDING, CHUNKED, LINEAR = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
)


def depth(fields: Fields) -> int:
    """Number of decoder layers."""
    return fields.integer("num_hidden_layers", most=MOST_LAYERS)


def heads_of(fields: Fields) -> tuple[int, int, int]:
    """Query heads, heads of keys and values, and the elements of a head."""
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise InvalidArgumentError(
            f"{fields.where}: {heads} heads cannot share {kv_heads} heads of keys and values; "
            "num_attention_heads must be a multiple of num_key_value_heads"
        )
    head_dim = fields.optional("head_dim")
    if head_dim is None:
        hidden = fields.integer("hidden_size")
        if hidden % heads:
            raise InvalidArgumentError(
                f"{fields.where}: hidden_size {hidden:,} is not divisible by {heads} heads; "
                "give head_dim"
            )
        head_dim = hidden // heads
    return heads, kv_heads, head_dim


def attention_of(
    fields: Fields,
    *,
    window: int | None = None,
    chunked: bool = False,
    qkv_bias: bool = False,
    out_bias: bool = False,
    head_norms: bool = False,
) -> Attention:
    """Attention with the usual fields for its heads."""
    heads, kv_heads, head_dim = heads_of(fields)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        chunked=chunked,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        norm_elements=2 * head_dim if head_norms else 0,
    )


def mlp_of(fields: Fields, *, bias: bool = False) -> Mlp:
    """The usual gated MLP."""
    return Mlp(inner=fields.integer("intermediate_size"), bias=bias)


def window_kinds(fields: Fields, kinds: Sequence[str]) -> tuple[str, ...]:
    """The kind of each layer: the configuration's ``layer_types``, or those given.

    Raises:
        InvalidArgumentError: A kind is not known.
    """
    listed = fields.texts("layer_types", count=len(kinds))
    for kind in listed or ():
        if kind not in (FULL, SLIDING, CHUNKED, LINEAR):
            raise fields.wrong("layer_types", kind, "a list of known kinds of attention")
    return listed or tuple(kinds)


def model_of(
    fields: Fields,
    layers: Sequence[Layer],
    *,
    tied: bool = False,
    prediction: Sequence[Layer] = (),
    prediction_copies: bool = True,
) -> Architecture:
    """A model of these layers.

    Args:
        fields: Its configuration.
        layers: Its layers.
        tied: Whether embedding and output layer are one where the configuration does not say.
        prediction: Layers for multi-token prediction.
        prediction_copies: Whether these have an embedding and an output layer of their own.
    """
    return Architecture(
        name=fields.where,
        model_type=fields.text("model_type"),
        hidden=fields.integer("hidden_size"),
        vocabulary=fields.integer("vocab_size"),
        layers=tuple(layers),
        tied=fields.flag("tie_word_embeddings", default=tied),
        max_context=fields.optional("max_position_embeddings"),
        dtype=fields.text("torch_dtype", "dtype", default="bfloat16"),
        quantisation=fields.mapping("quantization_config") or {},
        prediction=tuple(prediction),
        prediction_copies=prediction_copies,
        notes=tuple(fields.notes),
    )
