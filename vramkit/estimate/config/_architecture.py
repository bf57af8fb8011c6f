"""What a model consists of: its layers, and every weight with how ranks split it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal[
    "embedding", "attention", "mlp", "experts", "router", "norm", "head", "vision", "prediction"
]


@dataclass(frozen=True)
class Weight:
    """One kind of tensor, with how often a model or a layer has it.

    Attributes:
        part: What it belongs to.
        name: Its name in a checkpoint, without the layer's prefix.
        shape: Its shape; a matrix is ``(out, in)``.
        units: Into how many equal pieces tensor parallelism can cut it: heads, or rows of an MLP.
            1 means that every rank holds all of it.
        repeats: Whether more ranks than units hold a unit several times, as for the keys and
            values of grouped-query attention. Otherwise that is an error.
        padded: Whether it is padded to a multiple of the ranks, as a vocabulary is.
        experts: How many experts have one; expert parallelism spreads them. 0: it is no expert's.
        buffer: Whether the checkpoint has it although no optimizer trains it.
        quantised: Whether quantisation schemes for linear layers apply to it.
        input_split: Whether tensor parallelism cuts the inputs and not the outputs.
    """

    part: Part
    name: str
    shape: tuple[int, ...]
    units: int = 1
    repeats: bool = False
    padded: bool = False
    experts: int = 0
    buffer: bool = False
    quantised: bool = False
    input_split: bool = False

    @property
    def elements(self) -> int:
        """Number of its elements, all experts together."""
        return math.prod(self.shape) * max(self.experts, 1)


@dataclass(frozen=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention.

    Attributes:
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_dim: Elements of a head.
        window: Latest tokens that a token attends to, itself included; ``None``: all.
        chunked: Whether the window is that of Llama 4, which restarts at multiples of its size.
        qkv_bias: Whether queries, keys and values have biases.
        out_bias: Whether the output projection has one.
        norm_elements: Weights of the norms of queries and keys, together.
        sinks: Whether each head has a learnt sink.
        gated: Whether the queries' projection also gives a gate for the output.
        fused: Whether the checkpoint has one matrix for queries, keys and values.
        partial_rotary: Whether transformers puts rotated and other elements of queries together.
        plain_norms: Whether queries and keys are normalised without weights.
        capped_scores: Whether a tanh bounds the scores where they are stored, as in Gemma 2.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    chunked: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    norm_elements: int = 0
    sinks: bool = False
    gated: bool = False
    fused: bool = False
    partial_rotary: bool = False
    plain_norms: bool = False
    capped_scores: bool = False

    @property
    def kind(self) -> str:
        """``"MHA"``, ``"GQA"`` or ``"MQA"``, with the window where there is one."""
        name = "MHA" if self.kv_heads == self.heads else "MQA" if self.kv_heads == 1 else "GQA"
        return name if self.window is None else f"{name}, window {self.window:,}"


@dataclass(frozen=True)
class Indexer:
    """What chooses the tokens of DeepSeek's sparse attention.

    Attributes:
        heads: Its heads.
        head_dim: Elements of a head; one key of this size is cached for each token.
        chosen_tokens: Tokens that attention then reads.
    """

    heads: int
    head_dim: int
    chosen_tokens: int


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (MLA), whose cache holds a latent vector and a rotary key.

    Attributes:
        heads: Heads.
        q_rank: Rank of the queries' projection; ``None``: one full matrix.
        kv_rank: Elements of the cached latent vector.
        nope_dim: Elements of a head's keys without rotary embedding.
        rope_dim: Elements of the rotary key, which all heads share.
        value_dim: Elements of a head's values.
        bias: Whether the first projections and the output have biases.
        indexer: The choice of tokens in sparse attention.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool = False
    indexer: Indexer | None = None
    window: None = None

    @property
    def kind(self) -> str:
        """``"MLA"``, and whether it is sparse."""
        return "MLA" if self.indexer is None else "MLA, sparse"


@dataclass(frozen=True)
class LinearAttention:
    """A gated delta net, as in Qwen3-Next: a state of constant size in place of a cache.

    Attributes:
        key_heads: Heads of queries and keys.
        value_heads: Heads of values, each with a state.
        key_dim: Elements of a key.
        value_dim: Elements of a value.
        kernel: Width of the convolution over time.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def kind(self) -> str:
        """``"linear"``."""
        return "linear"

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def state_elements(self) -> int:
        """Elements of a sequence's recurrent state."""
        return self.value_heads * self.key_dim * self.value_dim


@dataclass(frozen=True)
class StateSpace:
    """A Mamba-2 mixer: a state of constant size in place of a cache.

    Attributes:
        heads: Heads.
        head_dim: Channels of a head.
        state_dim: Elements of the state of a channel.
        groups: Groups that share their input and output matrices.
        kernel: Width of the convolution over time.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections have biases.
    """

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    kernel: int
    conv_bias: bool = True
    bias: bool = False

    @property
    def kind(self) -> str:
        """``"state space"``."""
        return "state space"

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.groups * self.state_dim

    @property
    def state_elements(self) -> int:
        """Elements of a sequence's recurrent state."""
        return self.inner * self.state_dim


Mixer = Attention | LatentAttention | LinearAttention | StateSpace


@dataclass(frozen=True)
class Mlp:
    """A feed-forward network.

    Attributes:
        inner: Elements between its two projections.
        gated: Whether a third projection gates the second's input (SwiGLU, GeGLU).
        bias: Whether the projections have biases.
        clamped: Whether the gate and what it scales are clamped first, as in gpt-oss.
        joined: Whether transformers has one matrix for the gate and what it scales.
    """

    inner: int
    gated: bool = True
    bias: bool = False
    clamped: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts.

    Attributes:
        experts: Routed experts.
        chosen: Experts that a token goes through.
        expert: One routed expert.
        shared: The experts that every token goes through, as one network.
        shared_gate: Whether a learnt gate scales the shared expert.
        router_bias: Whether the router has a bias.
        correction: Whether the checkpoint has a correction of the router's scores for balance.
        wide_router: Whether transformers computes the router in fp32.
        all_tokens: Whether each expert of transformers' module computes all tokens, as in Llama 4.
    """

    experts: int
    chosen: int
    expert: Mlp
    shared: Mlp | None = None
    shared_gate: bool = False
    router_bias: bool = False
    correction: bool = False
    wide_router: bool = False
    all_tokens: bool = False


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        mixer: What mixes tokens: attention of some kind, or a state space.
        feed_forward: The network after it.
        norms: Norms over the hidden size.
        norm_bias: Whether they have biases too.
        wide_norms: Whether transformers' norms multiply by their weight in fp32.
    """

    mixer: Mixer
    feed_forward: Mlp | Mixture
    norms: int = 2
    norm_bias: bool = False
    wide_norms: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model as its configuration describes it.

    Attributes:
        name: Where it comes from: a name of the catalogue, or a file.
        model_type: The ``model_type`` of the configuration.
        hidden: Elements of the residual stream.
        vocabulary: Tokens of the vocabulary.
        layers: The decoder layers, in their order.
        tied: Whether the output layer has the embedding's matrix.
        max_context: Most positions, as the configuration says; ``None``: it does not.
        dtype: Dtype of the checkpoint, as the configuration says.
        positions: Learnt position embeddings.
        dropout: Whether training keeps dropout masks, as in GPT-2.
        capped_logits: Whether a tanh bounds the logits, as in Gemma 2.
        quantisation: The configuration's ``quantization_config``.
        prediction: Layers for multi-token prediction in the checkpoint.
        prediction_copies: Whether each of these has an embedding and an output layer of its own.
        vision: Weights of the encoder of images and of what connects it.
        notes: What was assumed, and what is not counted, in sentences.
        configuration: What was read.
    """

    name: str
    model_type: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    tied: bool
    max_context: int | None = None
    dtype: str = "bfloat16"
    positions: int = 0
    dropout: bool = False
    capped_logits: bool = False
    quantisation: dict[str, Any] = field(default_factory=dict, hash=False)
    prediction: tuple[Layer, ...] = ()
    prediction_copies: bool = True
    vision: tuple[Weight, ...] = ()
    notes: tuple[str, ...] = ()
    configuration: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)

    def kinds(self) -> dict[str, int]:
        """Number of layers of each kind of attention.

        >>> from vramkit.estimate.config import read_model
        >>> read_model("gemma-2-9b").kinds()
        {'GQA, window 4,096': 21, 'GQA': 21}
        """
        found: dict[str, int] = {}
        for layer in self.layers:
            found[layer.mixer.kind] = found.get(layer.mixer.kind, 0) + 1
        return found
