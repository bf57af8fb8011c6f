"""Activations that a layer keeps from its forward for its backward, in closed form.

The count follows Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
Models" (arXiv 2205.05198), section 4, tensor by tensor: for a layer of GPT with dropout it gives
their ``s b h (34 + 5 a s / h)`` bytes, and under tensor and sequence parallelism ``1 / t`` of it.
It extends to grouped-query and latent attention, gated MLPs, mixtures and linear attention.
FlashAttention (arXiv 2205.14135) keeps its result and a log-sum-exp for each head in place of the
scores. Fused norms and activation functions keep their input. What the modules of transformers
keep, which are not fused, is in ``_eager_activations.py``.
"""

from __future__ import annotations

from vramkit.estimate.config._architecture import (
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixture,
    Mlp,
    StateSpace,
)
from vramkit.estimate.config._eager_activations import eager_layer_bytes
from vramkit.estimate.config._keeping import Keeping

# Tokens of a chunk after which the kernels of linear attention and of Mamba-2 keep a state.
_DELTA_CHUNK, _STATE_CHUNK = 64, 256


def layer_bytes(layer: Layer, keeping: Keeping) -> float:
    """Bytes that a layer keeps for one token on one rank.

    Args:
        layer: The layer.
        keeping: How activations are kept.
    """
    mixer = layer.mixer
    if not keeping.fused and not isinstance(mixer, StateSpace):
        return eager_layer_bytes(layer, keeping)
    if isinstance(mixer, Attention):
        kept = _attention(mixer, keeping)
    elif isinstance(mixer, LatentAttention):
        kept = _latent(mixer, keeping)
    elif isinstance(mixer, LinearAttention):
        kept = _linear(mixer, keeping)
    else:
        kept = _state_space(mixer, keeping)
    network = layer.feed_forward
    kept += _mlp(network, keeping) if isinstance(network, Mlp) else _mixture(network, keeping)
    # Each norm keeps its input; attention and network keep the results as their inputs.
    norm = keeping.norm(native=layer.norm_bias, wide=layer.wide_norms)
    return kept + layer.norms * norm + 2 * keeping.stream_input + 2 * keeping.mask


def _attention(mixer: Attention, keeping: Keeping) -> float:
    heads = -(-mixer.heads // keeping.cut.tensor)
    queries = heads * mixer.head_dim
    keys = -(-mixer.kv_heads // keeping.cut.tensor) * mixer.head_dim
    kept: float = (queries + 2 * keys) * keeping.element
    if mixer.norm_elements:
        kept += (queries + keys) * keeping.element
    if mixer.gated:
        kept += 2 * queries * keeping.element
    return kept + _core(heads, queries, keeping)


def _latent(mixer: LatentAttention, keeping: Keeping) -> float:
    heads = -(-mixer.heads // keeping.cut.tensor)
    keys = 2 * heads * (mixer.nope_dim + mixer.rope_dim) + heads * mixer.value_dim
    # What the norms keep of the small vectors, and what the second projections keep of theirs.
    small: float = (mixer.kv_rank + mixer.rope_dim + (mixer.q_rank or 0)) * keeping.element
    small += (mixer.kv_rank + (mixer.q_rank or 0)) * keeping.linear_input
    return keys * keeping.element + small + _core(heads, heads * mixer.value_dim, keeping)


def _core(heads: int, result: int, keeping: Keeping) -> float:
    """The scores or what FlashAttention keeps, and the input of the output projection."""
    if keeping.flash:
        again = result * keeping.linear_input if keeping.linear_input != keeping.element else 0
        return result * keeping.element + 4 * heads + again
    kept: float = result * keeping.linear_input
    if keeping.recompute_core:
        return kept
    scores = heads * keeping.row_tokens
    # The softmax's result; with dropout the mask and the result of dropout too.
    return kept + scores * (keeping.element * (2 if keeping.dropout else 1) + keeping.dropout)


def _linear(mixer: LinearAttention, keeping: Keeping) -> float:
    values = mixer.value_heads * mixer.value_dim
    elements = 2 * mixer.channels + 3 * values + mixer.state_elements / _DELTA_CHUNK
    gates = 2 * mixer.value_heads * 4
    kept = elements * keeping.element + gates + values * keeping.linear_input
    return kept / keeping.cut.tensor


def _state_space(mixer: StateSpace, keeping: Keeping) -> float:
    elements = 2 * mixer.channels + 2 * mixer.inner + mixer.state_elements / _STATE_CHUNK
    kept = (elements + mixer.heads) * keeping.element + mixer.inner * keeping.linear_input
    return kept / keeping.cut.tensor


def _mlp(mlp: Mlp, keeping: Keeping, *, ranks: int | None = None) -> float:
    inner = -(-mlp.inner // (keeping.cut.tensor if ranks is None else ranks))
    kept = (2 if mlp.gated else 1) * keeping.element
    if not keeping.fused:
        # The activation's result; GELU by tanh keeps three values in the wider dtype.
        kept += keeping.element if mlp.gated else 3 * keeping.stream_element
    return inner * (kept + keeping.linear_input)


def _mixture(network: Mixture, keeping: Keeping) -> float:
    """Copies of the tokens for each chosen expert; their shares are multiplied inside the expert.

    The tensor ranks of a replica share the copies unless they also share each expert.
    """
    copies = network.chosen * keeping.cut.expert_tensor / keeping.cut.tensor
    expert = _mlp(network.expert, keeping, ranks=keeping.cut.expert_tensor)
    kept = copies * (keeping.hidden * keeping.linear_input + expert)
    kept += 2 * 4 * network.experts / keeping.stream_ranks
    return kept + (_mlp(network.shared, keeping) if network.shared else 0)
