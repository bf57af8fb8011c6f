"""Intermediate results of transformers' modules while they read a prompt, in closed form.

The terms are the tensors that are live at the peak of such a pass; they were read from traces of
transformers 5.17, and ``tests/estimate/config/test_traced.py`` holds them against such traces.
"""

from __future__ import annotations

from vramkit.estimate.config._architecture import (
    Architecture,
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixture,
)
from vramkit.estimate.config._parallel import Cut
from vramkit.estimate.config._serving_activations import mixer_elements

_ELEMENT, _WIDE = 2, 4
_CHUNK = 64
# In attention the embedding, the residual and the normalised input live; after it the sum too.
_STREAMS = 3


def eager_activation_bytes(
    model: Architecture, layers: tuple[Layer, ...], cut: Cut, row: int, sequences: int
) -> int:
    """Bytes at the peak of reading the prompts of all sequences at once.

    Args:
        model: The model.
        layers: The stage's layers.
        cut: How ranks split them.
        row: Tokens of a prompt.
        sequences: Number of prompts.
    """
    inside = max(
        (
            max(
                _mixer(layer, row, cut),
                model.hidden * _ELEMENT + _network(layer, model.hidden, row, cut),
            )
            for layer in set(layers)
        ),
        default=0.0,
    )
    stream = _STREAMS * model.hidden * _ELEMENT
    logits = sequences * model.vocabulary * _ELEMENT
    return int(row * sequences * (stream + inside)) + _mask_bytes(layers, row, sequences) + logits


def _mask_bytes(layers: tuple[Layer, ...], row: int, sequences: int) -> int:
    """One mask for each kind of attention that has one, for all layers and mostly all prompts."""
    found = 0
    for mixer in {layer.mixer for layer in layers}:
        if isinstance(mixer, Attention):
            if mixer.sinks:
                found += row * row * sequences * _ELEMENT
            elif mixer.window is not None and row > mixer.window:
                found += row * row * (sequences if mixer.chunked else 1)
        elif isinstance(mixer, LatentAttention) and mixer.indexer is not None:
            found += row * row
    return found


def _mixer(layer: Layer, row: int, cut: Cut) -> float:
    mixer = layer.mixer
    if isinstance(mixer, LinearAttention):
        keys, values = mixer.value_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
        narrow = 2 * (mixer.channels + values + keys)
        wide = 5 * (keys + values) + mixer.value_heads * (3 * _CHUNK + 6)
        return (narrow * _ELEMENT + wide * _WIDE) / cut.tensor
    found = mixer_elements(layer, cut.tensor) * _ELEMENT
    if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
        # Each query gets a copy of all of the indexer's keys, in fp32.
        return found + row * (mixer.indexer.head_dim + mixer.indexer.heads) * _WIDE
    if isinstance(mixer, Attention) and mixer.sinks:
        # The scores, with the mask, with the sinks, and their softmax.
        found += 4 * -(-mixer.heads // cut.tensor) * row * _ELEMENT
    return found


def _network(layer: Layer, hidden: int, row: int, cut: Cut) -> float:
    network, mixer = layer.feed_forward, layer.mixer
    if not isinstance(network, Mixture):
        # The activation's result, what it scales and their product; a matrix for both halves
        # keeps both.
        inner = -(-network.inner // cut.tensor)
        if network.gated:
            return (4 if network.joined else 3) * inner * _ELEMENT
        # GELU by tanh in four values, beside attention's result, which GPT-2 holds.
        return (4 * inner + hidden) * _ELEMENT
    # transformers' attention with sinks returns its scores, which live on beside the experts.
    held = mixer.heads * row * _ELEMENT if isinstance(mixer, Attention) and mixer.sinks else 0
    return held + _routed(network, hidden, cut)


def _routed(network: Mixture, hidden: int, cut: Cut) -> float:
    inner = -(-network.expert.inner // cut.expert_tensor)
    share = cut.expert_tensor / cut.tensor
    if network.all_tokens:
        return hidden * _ELEMENT + network.experts * share * (hidden + 4 * inner) * _ELEMENT
    # Either the projection's result before and after the padding is cleared, or the experts'
    # results times their shares before and after they are sorted back.
    first = hidden + (9 if network.expert.clamped else 4) * inner
    shares = _WIDE if network.wide_router else _ELEMENT
    last = 2 * hidden * (_ELEMENT + shares)
    return network.chosen * share * max(first * _ELEMENT, last)
