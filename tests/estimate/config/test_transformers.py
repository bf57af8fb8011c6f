"""The same models built by transformers have the same parameters."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from vramkit.estimate.config import (
    Serving,
    Training,
    catalogue,
    count_parameters,
    estimate_serving,
    estimate_training,
    read_model,
)
from vramkit.estimate.config._catalogue import configuration_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", minversion="5.0")

# transformers renames its own arguments.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

_NO_OTHER_HOME = {"kimi_k2": "deepseek_v3"}


def built(config: dict[str, Any], device: str = "meta") -> Any:
    """Build the model without memory, or on another device."""
    fields = {name: value for name, value in config.items() if name != "quantization_config"}
    model_type = fields.pop("model_type")
    model_type = _NO_OTHER_HOME.get(model_type, model_type)
    images = "vision_config" in fields
    auto = transformers.AutoModelForImageTextToText if images else transformers.AutoModelForCausalLM
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        return auto.from_config(transformers.AutoConfig.for_model(model_type, **fields))


def _part(name: str) -> str:
    """The part that a parameter of transformers belongs to."""
    words = {
        "vision": ("vision", "multi_modal_projector"),
        "head": ("lm_head",),
        "embedding": ("embed_tokens", "wte", "wpe"),
        "experts": ("experts.",),
        "router": ("router", "mlp.gate.", "shared_expert_gate"),
        "mlp": ("mlp.", "feed_forward."),
        "attention": ("attn", "mamba", "indexer"),
    }
    if "shared_expert." in name or "shared_experts." in name:
        return "mlp"
    if name.endswith("norm.weight") and "attn." not in name and "mamba." not in name:
        words = {"vision": words["vision"]}
    return next((part for part, keys in words.items() if any(k in name for k in keys)), "norm")


@pytest.mark.parametrize("name", [entry.name for entry in catalogue()])
def test_parameters_by_part_at_full_size(name: str) -> None:
    config = configuration_of(name)
    assert config is not None
    found: dict[str, int] = {}
    for parameter_name, parameter in built(config).named_parameters():
        part = _part(parameter_name)
        found[part] = found.get(part, 0) + parameter.numel()
    assert found == count_parameters(read_model(name)).parts


_ODD: dict[str, dict[str, Any]] = {
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 24},
    "glm": {"model_type": "glm", "head_dim": 16, "attention_bias": True, "pad_token_id": None},
    "qwen3 with biases": {"model_type": "qwen3", "head_dim": 24, "attention_bias": True},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    },
    "bamba": {
        "model_type": "bamba",
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_state": 16,
        "mamba_n_groups": 2,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
    "deepseek_v3 with biases": {
        "model_type": "deepseek_v3",
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "attention_bias": True,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 32},
}
_BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}


def _variant(case: str) -> dict[str, Any]:
    """A shrunken model; GPT-2 has other names for the fields."""
    return {**({"vocab_size": 128} if case == "gpt2" else _BASE), **_ODD[case]}


@pytest.mark.parametrize("case", _ODD)
def test_parameters_of_variants(case: str) -> None:
    config = _variant(case)
    model = built(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(read_model(config)).total == total


@pytest.mark.parametrize("case", ["tied", "qwen3 with biases", "qwen2_moe", "gpt2"])
def test_states_after_a_real_step(case: str) -> None:
    config = _variant(case)
    model = built(config, device="cpu").float()
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 128, (4, 32))  # so many that each expert gets some
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    states = [each for state in optimizer.state.values() for each in state.values()]
    moments = sum(each.nbytes for each in states if each.dim())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    options = Training(policy="fp32", sequence=16)
    estimate = estimate_training(read_model(config), options)
    assert estimate.amount("weights") == estimate.amount("gradients") == weights
    assert estimate.amount("optimizer state") == pytest.approx(moments, rel=0.01)


def _cached_bytes(config: dict[str, Any], tokens: int) -> int:
    """Bytes of the cache that transformers keeps after reading some tokens."""
    model = built(config, device="cpu").to(torch.bfloat16).eval()
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(2, tokens, dtype=torch.long), past_key_values=cache)
    held = (each for layer in cache.layers for each in vars(layer).values())
    return sum(each.nbytes for each in held if isinstance(each, torch.Tensor) and each.dim() == 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"model_type": "qwen3", "head_dim": 24},
        {"model_type": "mistral", "sliding_window": 128},
        {"model_type": "gemma2", "head_dim": 16, "sliding_window": 128},
        {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 128},
    ],
    ids=lambda changes: changes["model_type"],
)
def test_caches_of_shrunken_models(changes: dict[str, Any]) -> None:
    config = {**_BASE, "max_position_embeddings": 512, **changes}
    options = Serving(context=256, batch=2, block_tokens=1)
    estimate = estimate_serving(read_model(config), options)
    # transformers keeps a window without the token that is read.
    assert estimate.amount("KV cache") == pytest.approx(_cached_bytes(config, 256), rel=0.01)
