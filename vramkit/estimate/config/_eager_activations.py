"""Activations that the modules of transformers keep, which are not fused, in closed form.

Each term is a tensor that autograd saves while such a module runs under PyTorch's scaled dot
product attention; they were read from traces of transformers 5.17 and torch 2.13 for an H100, and
``tests/estimate/config/test_traced.py`` holds them against such traces for every family of the
catalogue. Fused kernels keep less: see ``_training_activations.py``.
"""

from __future__ import annotations

from vramkit.estimate.config._architecture import (
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixture,
    Mlp,
)
from vramkit.estimate.config._keeping import Keeping

# Tokens of a chunk of linear attention written in plain PyTorch.
_CHUNK = 64
# For each copy of a token that goes to an expert: its place before and after sorting, its token,
# its share and whether it is padding.
_SORTING = 8 + 8 + 8 + 4 + 1


def eager_layer_bytes(layer: Layer, keeping: Keeping) -> float:
    """Bytes that a layer keeps for one token on one rank, without those of state spaces.

    Args:
        layer: The layer.
        keeping: How activations are kept.
    """
    mixer, network = layer.mixer, layer.feed_forward
    inputs = 1
    if isinstance(mixer, Attention):
        kept = _attention(mixer, keeping, wide=layer.wide_norms)
        inputs = 1 if mixer.fused or layer.norm_bias else 3
    elif isinstance(mixer, LatentAttention):
        kept, inputs = _latent(mixer, keeping), 2
    elif isinstance(mixer, LinearAttention):
        kept, inputs = _linear(mixer, keeping), 2
    else:
        kept = 0.0
    if isinstance(network, Mlp):
        kept += _mlp(network, keeping, keeping.cut.tensor)
        inputs += 2 if network.gated else 1
    else:
        kept += _mixture(network, keeping)
        inputs += 1
    # Under autocast each linear layer casts its input anew.
    inputs = inputs if keeping.casts else 2
    norms = layer.norms * keeping.norm(native=layer.norm_bias, wide=layer.wide_norms)
    return kept + norms + inputs * keeping.stream_input + 2 * keeping.mask


def _attention(mixer: Attention, keeping: Keeping, *, wide: bool) -> float:
    heads = -(-mixer.heads // keeping.cut.tensor)
    kv_heads = -(-mixer.kv_heads // keeping.cut.tensor)
    queries, keys, element = heads * mixer.head_dim, kv_heads * mixer.head_dim, keeping.element
    kept = 0.0
    if mixer.norm_elements or mixer.plain_norms:
        # An fp32 copy; with weights the normalised value too.
        scaled = 0 if mixer.plain_norms else 4 if wide else element
        kept += (queries + keys) * (4 + scaled) + 4 * (heads + kv_heads)
    if mixer.gated:
        kept += 2 * queries * element
    masked = mixer.window is not None and keeping.row_tokens > mixer.window
    # Memory-efficient attention, the only kernel for fp32, takes no grouped queries.
    by_products = element == 4 and kv_heads != heads and not masked
    if mixer.sinks or by_products or not keeping.flash:
        capped = 0
        if mixer.capped_scores and not keeping.flash:
            capped = heads * keeping.row_tokens * element
        return kept + capped + _scores(mixer.sinks, heads, queries, keeping)
    # With a mask, keys and values are repeated for each query head; one head is only expanded.
    repeated = masked and 1 < kv_heads < heads
    kept += (queries + 2 * (queries if repeated else keys)) * element
    if mixer.fused and not repeated:
        # The values are a part of the projection's result, which stays whole.
        kept += (queries + keys) * element
    return kept + _kernel(heads, queries, keeping, masked=masked, copied=mixer.partial_rotary)


def _kernel(heads: int, result: int, keeping: Keeping, *, masked: bool, copied: bool) -> float:
    """A fused kernel's result, its log-sum-exp and its mask.

    Where queries were concatenated, the result is in their layout and is copied.
    """
    mask = keeping.row_tokens * keeping.element if masked else 0
    return result * keeping.element * (2 if copied else 1) + 4 * heads + mask


def _scores(sinks: bool, heads: int, queries: int, keeping: Keeping) -> float:
    """Attention by products: queries, repeated keys and values, the result and the scores."""
    element, row = keeping.element, keeping.row_tokens
    kept = 4 * queries * element
    if sinks:
        return kept + heads * ((row + 1) * element + 8)
    if keeping.recompute_core:
        return kept
    if keeping.dropout:
        return kept + heads * row * (2 * element + 1)
    return kept + heads * row * (4 + (element if element < 4 else 0))


def _latent(mixer: LatentAttention, keeping: Keeping) -> float:
    heads = -(-mixer.heads // keeping.cut.tensor)
    element = keeping.element
    ranks = mixer.kv_rank + (mixer.q_rank or 0)
    small = ranks * (4 + element + keeping.linear_input) + 8
    wide = heads * (mixer.nope_dim + mixer.rope_dim)
    values = heads * mixer.value_dim
    if not keeping.flash:
        # Keys as wide as the queries take the place of repeated ones.
        return small + 2 * (wide - values) * element + _scores(False, heads, values, keeping)
    # The values are a part of the expanded keys and values, which stay whole.
    both = heads * (mixer.nope_dim + mixer.value_dim)
    masked = mixer.indexer is not None
    kernel = _kernel(heads, values, keeping, masked=masked, copied=True)
    return small + (2 * wide + both) * element + kernel


def _linear(mixer: LinearAttention, keeping: Keeping) -> float:
    """The gated delta rule in plain PyTorch, without the library flash-linear-attention."""
    heads, element = mixer.value_heads, keeping.element
    keys, values = heads * mixer.key_dim, heads * mixer.value_dim
    # In fp32: queries, keys and their scaled and padded copies; the same of values; five products
    # within chunks; a state for each chunk.
    wide = 8 * keys + 6 * values + 5 * heads * _CHUNK + 9 * heads + mixer.state_elements / _CHUNK
    narrow = (2 * mixer.channels + 2 * values + heads) * element
    return (4 * wide + narrow + values * keeping.linear_input) / keeping.cut.tensor


def _mlp(mlp: Mlp, keeping: Keeping, ranks: int) -> float:
    inner = -(-mlp.inner // ranks)
    if not mlp.gated:
        # GELU by tanh keeps three values in the wider dtype.
        return inner * (keeping.element + 3 * keeping.stream_element + keeping.linear_input)
    # Both halves and the activation's result; clamped ones have three results more.
    return inner * ((6 if mlp.clamped else 3) * keeping.element + keeping.linear_input)


def _mixture(network: Mixture, keeping: Keeping) -> float:
    hidden, element = keeping.hidden, keeping.element
    kept = (4 * network.experts + 16 * network.chosen) / keeping.stream_ranks
    if network.wide_router:
        kept += 4 * hidden / keeping.stream_ranks
    if network.shared:
        kept += _mlp(network.shared, keeping, keeping.cut.tensor)
        kept += hidden * element if network.shared_gate else 0
    share = keeping.cut.expert_tensor / keeping.cut.tensor
    copies = (network.experts if network.all_tokens else network.chosen) * share
    # The tokens, and their results or their scaled values, which are multiplied by the shares.
    one = hidden * (keeping.linear_input + element)
    one += _mlp(network.expert, keeping, keeping.cut.expert_tensor)
    return kept + copies * (one + (0 if network.all_tokens else _SORTING))
