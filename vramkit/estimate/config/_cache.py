"""What a sequence occupies while it is served: cached keys and values, or states.

Sources: multi-head latent attention's cache of ``kv_lora_rank + qk_rope_head_dim`` elements is
that of DeepSeek-V2's report (arXiv 2405.04434), section 2.1; blocks of tokens are those of
PagedAttention (arXiv 2309.06180).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vramkit.estimate.config._architecture import (
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mixer,
    StateSpace,
)

# Under an 8-bit cache, sparse MLA keeps its rotary key in 16 bits, and an fp32 scale for each 128
# elements of the latent vector; its indexer an fp32 scale for each key.
_SCALED = 128


@dataclass(frozen=True)
class CacheOptions:
    """How an engine keeps caches.

    Attributes:
        element_bytes: Bytes of a cached element.
        state_bytes: Bytes of an element of a recurrent state.
        block_tokens: Tokens of a block; caches take whole blocks.
        keeps_windows: Whether layers with a window keep only its tokens.
        sparse_latents: Whether sparse MLA caches latent vectors, and not every head's keys and
            values as transformers does.
    """

    element_bytes: int = 2
    state_bytes: int = 4
    block_tokens: int = 16
    keeps_windows: bool = True
    sparse_latents: bool = True


def token_bytes(mixer: Mixer, element_bytes: int, tensor: int = 1) -> int:
    """Bytes that a layer caches for one token on one rank.

    Args:
        mixer: The layer's attention.
        element_bytes: Bytes of an element.
        tensor: Tensor-parallel ranks: they share heads, and each holds MLA's cache whole.
    """
    if isinstance(mixer, Attention):
        heads = -(-mixer.kv_heads // tensor)
        return 2 * heads * mixer.head_dim * element_bytes
    if not isinstance(mixer, LatentAttention):
        return 0
    if mixer.indexer is None:
        return (mixer.kv_rank + mixer.rope_dim) * element_bytes
    if element_bytes > 1:
        return (mixer.kv_rank + mixer.rope_dim) * element_bytes + _index_key(mixer)
    scales = 4 * -(-mixer.kv_rank // _SCALED)
    return mixer.kv_rank + scales + 2 * mixer.rope_dim + _index_key(mixer)


def _index_key(mixer: LatentAttention) -> int:
    """The indexer's key, in fp8 with one fp32 scale."""
    return 0 if mixer.indexer is None else mixer.indexer.head_dim + 4


def sequence_state_bytes(mixer: Mixer, options: CacheOptions, tensor: int = 1) -> int:
    """Bytes of a sequence's states in a layer of linear attention or of a state space."""
    if not isinstance(mixer, LinearAttention | StateSpace):
        return 0
    recurrent = mixer.state_elements * options.state_bytes
    convolution = mixer.channels * (mixer.kernel - 1) * max(options.element_bytes, 2)
    return -(-(recurrent + convolution) // tensor)


def cached_tokens(mixer: Mixer, context: int, options: CacheOptions) -> int:
    """Tokens that a layer holds of a sequence, in whole blocks."""
    block = options.block_tokens
    blocks = -(-context // block)
    window = mixer.window if isinstance(mixer, Attention) else None
    if window is not None and options.keeps_windows:
        # A window that is not aligned to blocks touches one more.
        blocks = min(blocks, -(-window // block) + (1 if block > 1 else 0))
    return blocks * block


def sequence_bytes(
    layers: Sequence[Layer], context: int, options: CacheOptions, tensor: int = 1
) -> tuple[int, int]:
    """Bytes of caches and of states of one sequence on one rank.

    Args:
        layers: The layers of the rank's stage.
        context: Tokens of the sequence.
        options: How the engine keeps them.
        tensor: Tensor-parallel ranks.
    """
    cache = state = 0
    for mixer, count in Counter(layer.mixer for layer in layers).items():
        tokens = cached_tokens(mixer, context, options)
        one = token_bytes(mixer, options.element_bytes, tensor)
        if isinstance(mixer, LatentAttention) and mixer.indexer and not options.sparse_latents:
            heads = -(-mixer.heads // tensor)
            elements = heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
            one = (elements + mixer.indexer.head_dim) * options.element_bytes
        cache += count * tokens * one
        state += count * sequence_state_bytes(mixer, options, tensor)
    return cache, state
