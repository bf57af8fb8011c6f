"""The closed form against what PyTorch saves in a layer with fused norms and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vramkit.estimate.config import read_model
from vramkit.estimate.config._parallel import Cut
from vramkit.estimate.config._training_activations import Keeping, layer_bytes

HIDDEN, HEADS, KV_HEADS, DIM, INNER = 256, 8, 2, 32, 640
BATCH, TOKENS = 2, 128
# Of the layer of DeepSeek.
NOPE, ROPE, Q_RANK, KV_RANK = 32, 16, 96, 64
EXPERTS, CHOSEN, EXPERT_INNER = 4, 2, 128


class FusedNorm(torch.autograd.Function):
    """RMSNorm that keeps its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.rms_norm(x, x.shape[-1:], weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient + x * 0, weight


class FusedGate(torch.autograd.Function):
    """SwiGLU that keeps its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return gradient * gate, gradient * up


class FusedAttention(torch.autograd.Function):
    """Attention that keeps what FlashAttention keeps, for values of another width than keys."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float()
        result = scores.softmax(-1).to(v.dtype) @ v
        result = result.transpose(1, 2).reshape(BATCH, TOKENS, -1)
        ctx.save_for_backward(q, k, v, result, scores.logsumexp(-1))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, result, _ = ctx.saved_tensors
        return q, k, v + 0 * (gradient - result).sum()


class LatentMixture(nn.Module):
    """A layer of DeepSeek: latent attention, then a mixture whose experts get equally many."""

    def __init__(self) -> None:
        super().__init__()
        heads = HEADS * (NOPE + ROPE)
        self.norms = nn.ParameterList([torch.ones(HIDDEN), torch.ones(HIDDEN)])
        self.small = nn.ParameterList([torch.ones(Q_RANK), torch.ones(KV_RANK)])
        self.q_a = nn.Linear(HIDDEN, Q_RANK, bias=False)
        self.q_b = nn.Linear(Q_RANK, heads, bias=False)
        self.kv_a = nn.Linear(HIDDEN, KV_RANK + ROPE, bias=False)
        self.kv_b = nn.Linear(KV_RANK, HEADS * (NOPE + DIM), bias=False)
        self.o = nn.Linear(HEADS * DIM, HIDDEN, bias=False)
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList([self._expert(EXPERT_INNER) for _ in range(EXPERTS)])
        self.shared = self._expert(EXPERT_INNER)

    @staticmethod
    def _expert(inner: int) -> nn.ModuleList:
        shapes = ((HIDDEN, inner), (HIDDEN, inner), (inner, HIDDEN))
        return nn.ModuleList([nn.Linear(*shape, bias=False) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(self._attend(FusedNorm.apply(x, self.norms[0])))
        normed = FusedNorm.apply(x, self.norms[1])
        return x + self._run(self.shared, normed) + self._mix(normed)

    def _attend(self, normed: Tensor) -> Tensor:
        q = self.q_b(FusedNorm.apply(self.q_a(normed), self.small[0]))
        q = q.view(BATCH, TOKENS, HEADS, -1).transpose(1, 2).contiguous()
        latent = self.kv_a(normed)
        both = self.kv_b(FusedNorm.apply(latent[..., :KV_RANK], self.small[1]))
        both = both.view(BATCH, TOKENS, HEADS, -1).transpose(1, 2)
        rotary = latent[:, None, :, KV_RANK:].expand(-1, HEADS, -1, -1)
        k = torch.cat([both[..., :NOPE], rotary], -1)
        return FusedAttention.apply(q, k, both[..., NOPE:].contiguous())

    def _mix(self, normed: Tensor) -> Tensor:
        flat = normed.view(-1, HIDDEN)
        self.router(flat).float().softmax(-1)
        result = torch.zeros_like(flat)
        for at, expert in enumerate(self.experts):
            # Each token goes through CHOSEN of the experts, in turn.
            chosen = [(at + turn) % EXPERTS for turn in range(CHOSEN)]
            where = torch.cat([torch.arange(each, len(flat), EXPERTS) for each in chosen])
            mixed = self._run(expert, flat[where])
            result = result.index_put((where,), mixed, accumulate=True)
        return result.view_as(normed)

    def _run(self, expert: nn.Module, tokens: Tensor) -> Tensor:
        up, gate, down = expert.children()
        return down(FusedGate.apply(gate(tokens), up(tokens)))


class GatedLayer(nn.Module):
    """A layer of Llama with grouped-query attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ParameterList([torch.ones(HIDDEN), torch.ones(HIDDEN)])
        self.q = nn.Linear(HIDDEN, HEADS * DIM, bias=False)
        self.k = nn.Linear(HIDDEN, KV_HEADS * DIM, bias=False)
        self.v = nn.Linear(HIDDEN, KV_HEADS * DIM, bias=False)
        self.o = nn.Linear(HEADS * DIM, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = FusedNorm.apply(x, self.norms[0])
        q, k, v = (
            part(normed).view(BATCH, TOKENS, -1, DIM).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(BATCH, TOKENS, -1))
        normed = FusedNorm.apply(x, self.norms[1])
        return x + self.down(FusedGate.apply(self.gate(normed), self.up(normed)))


def dropped(x: Tensor) -> Tensor:
    """Dropout as on CUDA, whose mask has one byte an element."""
    kept: Tensor = torch.native_dropout(x, 0.1, train=True)[0]
    return kept


class GptLayer(nn.Module):
    """A layer of GPT-2 that stores its scores, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)])
        self.qkv = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(3)])
        self.o = nn.Linear(HIDDEN, HIDDEN)
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.down = nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norms[0](x)
        q, k, v = (
            part(normed).view(BATCH, TOKENS, HEADS, -1).transpose(1, 2).flatten(0, 1)
            for part in self.qkv
        )
        scores = torch.baddbmm(
            torch.zeros(1, dtype=q.dtype), q, k.transpose(1, 2), alpha=1 / math.sqrt(DIM)
        )
        weights = dropped(scores.softmax(-1))
        mixed = (weights @ v).view(BATCH, HEADS, TOKENS, -1).transpose(1, 2)
        x = x + dropped(self.o(mixed.reshape(BATCH, TOKENS, -1)))
        hidden = functional.gelu(self.up(self.norms[1](x)))
        return x + dropped(self.down(hidden))


def saved_bytes(layer: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the storages that a layer keeps for its backward, its parameters left out."""
    layer = layer.to(dtype)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    x = torch.randn(BATCH, TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(size for size, _ in kept.values())


_LLAMA = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 64,
}
_GPT = {
    "model_type": "gpt2",
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_layer": 1,
    "n_positions": TOKENS,
    "vocab_size": 64,
}


_DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "q_lora_rank": Q_RANK,
    "kv_lora_rank": KV_RANK,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": DIM,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": EXPERT_INNER,
    "vocab_size": 64,
}


@pytest.mark.parametrize(
    ("config", "layer", "flash"),
    [(_LLAMA, GatedLayer, True), (_GPT, GptLayer, False), (_DEEPSEEK, LatentMixture, True)],
    ids=["llama", "gpt", "deepseek"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_layer_keeps_what_the_closed_form_says(
    config: dict[str, Any], layer: Callable[[], nn.Module], flash: bool, dtype: torch.dtype
) -> None:
    model = read_model(config)
    keeping = Keeping(
        hidden=HIDDEN,
        element=dtype.itemsize,
        stream_element=dtype.itemsize,
        linear_input=dtype.itemsize,
        cut=Cut(),
        stream_ranks=1,
        row_tokens=TOKENS,
        flash=flash,
        dropout=model.dropout,
        recompute_core=False,
    )
    expected = layer_bytes(model.layers[0], keeping) * BATCH * TOKENS
    assert saved_bytes(layer(), dtype) == pytest.approx(expected, rel=0.01)
