"""Intermediate results of one forward pass without gradients."""

from __future__ import annotations

from collections.abc import Sequence

from vramkit.estimate.config._architecture import (
    Architecture,
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixture,
    Mlp,
)
from vramkit.estimate.config._parallel import Cut

_ELEMENT = 2


def activation_bytes(
    model: Architecture, layers: Sequence[Layer], cut: Cut, tokens: int, sequences: int
) -> int:
    """Bytes at the peak of one forward pass of a stage.

    The residual stream and its normalised copy live beside the intermediate results of either the
    attention or the feed-forward network of one layer. The logits, in 16 bits and in fp32 for
    sampling, come after the last layer.

    Args:
        model: The model.
        layers: The stage's layers.
        cut: How ranks split them.
        tokens: Tokens of the pass.
        sequences: Sequences whose next token the stage predicts; 0 for all but the last stage.
    """
    stream = 2 * model.hidden
    widest = max(
        (
            max(mixer_elements(layer, cut.tensor), _network(layer, model.hidden, cut))
            for layer in set(layers)
        ),
        default=0,
    )
    inside = tokens * (stream + widest) * _ELEMENT
    logits = tokens * stream * _ELEMENT + sequences * model.vocabulary * (_ELEMENT + 4)
    return max(inside, logits if sequences else 0)


def mixer_elements(layer: Layer, tensor: int) -> int:
    """Elements for one token: projections and the result."""
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        queries = -(-mixer.heads // tensor) * mixer.head_dim * (2 if mixer.gated else 1)
        return 2 * queries + 2 * -(-mixer.kv_heads // tensor) * mixer.head_dim
    if isinstance(mixer, LatentAttention):
        heads = -(-mixer.heads // tensor)
        # While prompts are read, keys and values are expanded for every head.
        keys = 2 * heads * (mixer.nope_dim + mixer.rope_dim)
        return keys + 2 * heads * mixer.value_dim + (mixer.q_rank or 0) + mixer.kv_rank
    if isinstance(mixer, LinearAttention):
        values = mixer.value_heads * mixer.value_dim
        return -(-(2 * mixer.channels + 2 * values) // tensor)
    return -(-(2 * mixer.channels + 2 * mixer.inner) // tensor)


def _network(layer: Layer, hidden: int, cut: Cut) -> int:
    """Elements for one token: the inner results, and each chosen expert's share."""
    network = layer.feed_forward
    if isinstance(network, Mlp):
        return _inner(network, cut.tensor)
    shared = _inner(network.shared, cut.tensor) if network.shared else 0
    return shared + _routed(network, hidden, cut)


def _inner(mlp: Mlp, ranks: int) -> int:
    return -(-mlp.inner * (3 if mlp.gated else 2) // ranks)


def _routed(network: Mixture, hidden: int, cut: Cut) -> int:
    """What the experts of a rank compute, if each receives equally many tokens.

    The tensor ranks of a replica see the same tokens, so each needs only its share of them.
    """
    copies = -(-network.chosen * cut.expert_tensor // cut.tensor)
    return copies * (_inner(network.expert, cut.expert_tensor) + 2 * hidden)
