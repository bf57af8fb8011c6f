"""The weights of a layer, and of a whole model, as tensors with their shapes.

Shapes and names are those of transformers' checkpoints, for which the tests compare them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from vramkit.estimate.config._architecture import (
    Architecture,
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixture,
    Mlp,
    Part,
    StateSpace,
    Weight,
)


@lru_cache(maxsize=512)
def layer_weights(layer: Layer, hidden: int) -> tuple[Weight, ...]:
    """Return the tensors of a decoder layer.

    Args:
        layer: The layer.
        hidden: Elements of the residual stream.
    """
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        found = _attention(mixer, hidden)
    elif isinstance(mixer, LatentAttention):
        found = _latent(mixer, hidden)
    elif isinstance(mixer, LinearAttention):
        found = _linear(mixer, hidden)
    else:
        found = _state_space(mixer, hidden)
    found += _feed_forward(layer.feed_forward, hidden)
    vectors = layer.norms * (2 if layer.norm_bias else 1)
    return (*found, *([Weight("norm", "layernorm", (hidden,))] * vectors))


def embedding_weights(model: Architecture) -> tuple[Weight, ...]:
    """Return what stands before the first layer, the image encoder included."""
    shape = (model.vocabulary, model.hidden)
    found = [Weight("embedding", "embed_tokens", shape, units=model.vocabulary, padded=True)]
    if model.positions:
        found.append(Weight("embedding", "embed_positions", (model.positions, model.hidden)))
    return (*found, *model.vision)


def head_weights(model: Architecture) -> tuple[Weight, ...]:
    """Return the last norm, and the output layer unless it is the embedding."""
    bias = model.layers[0].norm_bias
    found = [Weight("norm", "norm", (model.hidden,))] * (2 if bias else 1)
    if not model.tied:
        shape = (model.vocabulary, model.hidden)
        found.append(Weight("head", "lm_head", shape, units=model.vocabulary, padded=True))
    return tuple(found)


def prediction_weights(model: Architecture) -> tuple[Weight, ...]:
    """Return the tensors for multi-token prediction, which a checkpoint may have besides."""
    found: list[Weight] = []
    hidden = model.hidden
    for layer in model.prediction:
        found += layer_weights(layer, hidden)
        found += [Weight("norm", "norm", (hidden,))] * 3
        found.append(Weight("prediction", "eh_proj", (hidden, 2 * hidden)))
        if model.prediction_copies:
            copy = Weight(
                "prediction", "embed_tokens", (model.vocabulary, hidden), model.vocabulary
            )
            found += [replace(copy, padded=True), replace(copy, name="head", padded=True)]
    return tuple(replace(weight, part="prediction") for weight in found)


def _matrix(part: Part, name: str, out: int, inner: int, units: int = 1) -> Weight:
    return Weight(part, name, (out, inner), units=units, quantised=True)


def _attention(mixer: Attention, hidden: int) -> list[Weight]:
    q_rows = mixer.heads * mixer.head_dim
    kv_rows = mixer.kv_heads * mixer.head_dim
    query = _matrix("attention", "q_proj", q_rows * (2 if mixer.gated else 1), hidden, mixer.heads)
    key = replace(_matrix("attention", "k_proj", kv_rows, hidden, mixer.kv_heads), repeats=True)
    found = [query, key, replace(key, name="v_proj")]
    if mixer.qkv_bias:
        found += [
            replace(weight, name=f"{weight.name}.bias", shape=weight.shape[:1], quantised=False)
            for weight in found
        ]
    out = _matrix("attention", "o_proj", hidden, q_rows, mixer.heads)
    found.append(replace(out, input_split=True))
    if mixer.out_bias:
        found.append(Weight("attention", "o_proj.bias", (hidden,)))
    if mixer.norm_elements:
        found.append(Weight("attention", "qk_norm", (mixer.norm_elements,)))
    if mixer.sinks:
        found.append(Weight("attention", "sinks", (mixer.heads,), units=mixer.heads))
    return found


def _latent(mixer: LatentAttention, hidden: int) -> list[Weight]:
    heads, head_dim = mixer.heads, mixer.nope_dim + mixer.rope_dim
    found: list[Weight] = []
    if mixer.q_rank is None:
        found.append(_matrix("attention", "q_proj", heads * head_dim, hidden, heads))
    else:
        found += [
            _matrix("attention", "q_a_proj", mixer.q_rank, hidden),
            Weight("attention", "q_a_layernorm", (mixer.q_rank,)),
            _matrix("attention", "q_b_proj", heads * head_dim, mixer.q_rank, heads),
        ]
    values = heads * mixer.value_dim
    key_rows = heads * mixer.nope_dim + values
    found += [
        _matrix("attention", "kv_a_proj_with_mqa", mixer.kv_rank + mixer.rope_dim, hidden),
        Weight("attention", "kv_a_layernorm", (mixer.kv_rank,)),
        _matrix("attention", "kv_b_proj", key_rows, mixer.kv_rank, heads),
        replace(_matrix("attention", "o_proj", hidden, values, heads), input_split=True),
    ]
    if mixer.bias:
        found.append(Weight("attention", "kv_a_proj_with_mqa.bias", (found[-4].shape[0],)))
        found.append(Weight("attention", "o_proj.bias", (hidden,)))
        if mixer.q_rank is not None:
            found.append(Weight("attention", "q_a_proj.bias", (mixer.q_rank,)))
    return found + _indexer(mixer, hidden)


def _indexer(mixer: LatentAttention, hidden: int) -> list[Weight]:
    indexer = mixer.indexer
    if indexer is None:
        return []
    rank = hidden if mixer.q_rank is None else mixer.q_rank
    return [
        _matrix("attention", "indexer.wq_b", indexer.heads * indexer.head_dim, rank),
        _matrix("attention", "indexer.wk", indexer.head_dim, hidden),
        Weight("attention", "indexer.k_norm", (2 * indexer.head_dim,)),
        Weight("attention", "indexer.weights_proj", (indexer.heads, hidden)),
    ]


def _linear(mixer: LinearAttention, hidden: int) -> list[Weight]:
    values, units = mixer.value_heads * mixer.value_dim, mixer.key_heads
    return [
        _matrix("attention", "in_proj_qkvz", mixer.channels + values, hidden, units),
        _matrix("attention", "in_proj_ba", 2 * mixer.value_heads, hidden, units),
        Weight("attention", "conv1d", (mixer.channels, mixer.kernel), units=units),
        Weight("attention", "dt_bias", (mixer.value_heads,), units=units),
        Weight("attention", "A_log", (mixer.value_heads,), units=units),
        Weight("attention", "norm", (mixer.value_dim,)),
        replace(_matrix("attention", "out_proj", hidden, values, units), input_split=True),
    ]


def _state_space(mixer: StateSpace, hidden: int) -> list[Weight]:
    units = mixer.heads
    rows = mixer.inner + mixer.channels + mixer.heads
    found = [
        _matrix("attention", "in_proj", rows, hidden, units),
        Weight("attention", "conv1d", (mixer.channels, mixer.kernel), units=units),
        Weight("attention", "dt_bias", (mixer.heads,), units=units),
        Weight("attention", "A_log", (mixer.heads,), units=units),
        Weight("attention", "D", (mixer.heads,), units=units),
        Weight("attention", "norm", (mixer.inner,), units=units),
        replace(_matrix("attention", "out_proj", hidden, mixer.inner, units), input_split=True),
    ]
    if mixer.conv_bias:
        found.append(Weight("attention", "conv1d.bias", (mixer.channels,), units=units))
    if mixer.bias:
        found.append(Weight("attention", "in_proj.bias", (rows,), units=units))
        found.append(Weight("attention", "out_proj.bias", (hidden,)))
    return found


def _mlp(mlp: Mlp, hidden: int, part: Part, experts: int = 0) -> list[Weight]:
    """The projections; one expert's are cut as an MLP of their own."""
    up = replace(_matrix(part, "up_proj", mlp.inner, hidden, mlp.inner), experts=experts)
    down = replace(up, name="down_proj", shape=(hidden, mlp.inner), input_split=True)
    found = [up, *([replace(up, name="gate_proj")] if mlp.gated else []), down]
    if not mlp.bias:
        return found
    biases = [
        replace(
            weight,
            name=f"{weight.name}.bias",
            shape=weight.shape[:1],
            quantised=False,
            units=1 if weight.input_split else weight.units,
        )
        for weight in found
    ]
    return found + biases


def _feed_forward(network: Mlp | Mixture, hidden: int) -> list[Weight]:
    if isinstance(network, Mlp):
        return _mlp(network, hidden, "mlp")
    found = _mlp(network.expert, hidden, "experts", network.experts)
    found.append(Weight("router", "gate", (network.experts, hidden)))
    if network.router_bias:
        found.append(Weight("router", "gate.bias", (network.experts,)))
    if network.correction:
        name = "gate.e_score_correction_bias"
        found.append(Weight("router", name, (network.experts,), buffer=True))
    if network.shared is not None:
        found += _mlp(network.shared, hidden, "mlp")
    if network.shared_gate:
        found.append(Weight("router", "shared_expert_gate", (1, hidden)))
    return found
