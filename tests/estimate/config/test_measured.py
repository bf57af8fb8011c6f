"""Trainings of transformers' modules, measured on an H100 with torch 2.11: peak of allocated bytes.

Each ran three steps of ``loss.backward(); optimizer.step(); zero_grad(set_to_none=True)`` with
AdamW, Llama and DeepSeek with ``use_cache=False`` and GPT-2 without: transformers then keeps a
cache of keys and values while it trains.
"""

from __future__ import annotations

from typing import Any

import pytest

from vramkit.estimate.config import Training, estimate_training, read_model

_LLAMA = {
    "model_type": "llama",
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
}
_DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 256,
    "q_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 32_000,
}
_GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50_257,
}
# The configuration, the options, the parameters, the measured bytes, and how near the estimate is.
_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int, int, float]] = {
    "llama, bf16": (
        _LLAMA,
        {"sequence": 1024, "micro_batch": 4, "policy": "bf16"},
        400_332_288,
        7_324_204_032,
        0.003,
    ),
    "llama, bf16, checkpointed": (
        _LLAMA,
        {"sequence": 2048, "micro_batch": 8, "policy": "bf16", "recompute": "full"},
        400_332_288,
        9_589_935_104,
        0.003,
    ),
    "gpt2, fp32": (
        _GPT2,
        {"sequence": 1024, "micro_batch": 8, "policy": "fp32"},
        124_439_808,
        15_776_445_440,
        0.001,
    ),
    "gpt2, autocast": (
        _GPT2,
        {"sequence": 1024, "micro_batch": 8, "policy": "autocast"},
        124_439_808,
        13_614_942_720,
        0.002,
    ),
    "deepseek v3, bf16": (
        _DEEPSEEK,
        {"sequence": 1024, "micro_batch": 4, "policy": "bf16"},
        291_538_432,
        5_791_651_840,
        0.004,
    ),
}


def _copied_cache_bytes(case: str) -> int:
    """Keys and values of 12 layers for 8 x 1,024 tokens, in GPT-2 only."""
    element = {"gpt2, fp32": 4, "gpt2, autocast": 2}.get(case, 0)
    return 2 * 12 * 8 * 1024 * 768 * element


@pytest.mark.parametrize("case", _CASES)
def test_a_measured_training(case: str) -> None:
    config, options, parameters, measured, within = _CASES[case]
    training = Training(fused=False, keep_gradients=False, **options)
    estimate = estimate_training(read_model(config), training)
    assert estimate.trainable == parameters
    allocated = [each for each in estimate.amounts if each.name != "context and libraries"]
    found = sum(each.size_bytes for each in allocated) + _copied_cache_bytes(case)
    assert found == pytest.approx(measured, rel=within)
    low = sum(each.low_bytes for each in allocated)
    assert low <= measured <= sum(each.high_bytes for each in allocated)


def test_gradients_that_stay_are_counted_whole() -> None:
    model = read_model(_LLAMA)
    freed = Training(sequence=1024, policy="bf16", keep_gradients=False)
    assert estimate_training(model, freed).amount("gradients") == 0
    kept = Training(sequence=1024, policy="bf16", keep_gradients=False, microbatches=2)
    assert estimate_training(model, kept).amount("gradients") == 2 * 400_332_288
    # Few tokens: the gradients need more than the activations that they replace.
    few = estimate_training(model, Training(sequence=8, policy="bf16", keep_gradients=False))
    freed_bytes = few.amount("activations") + few.amount("logits and loss")
    assert few.amount("gradients") == 2 * 400_332_288 - freed_bytes
