"""The closed form against traces of the models that transformers builds, at a small size."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from vramkit.errors import InvalidArgumentError, MissingExtraError
from vramkit.estimate.config import Serving, Training, trace_model
from vramkit.estimate.config._catalogue import catalogue, configuration_of
from vramkit.estimate.config._families import model_types
from vramkit.estimate.config._traced import build_model, closed_form_bytes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", minversion="5.17")

# transformers renames its own arguments.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

# Heads, widths and experts of a model that is traced in a second.
_SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "vocab_size": 16_384,
    "num_attention_heads": 8,
    "intermediate_size": 1536,
    "intermediate_size_mlp": 1536,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "head_dim": 64,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 16,
    "num_experts": 16,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
    "index_n_heads": 4,
    "index_head_dim": 64,
    "index_topk": 128,
    "sliding_window": 256,
    "attention_chunk_size": 256,
    "pad_token_id": 0,
}
# As many layers as there are in a period of kinds of layers.
_LAYERS = {"gemma3_text": 6}


def shrunken(config: dict[str, Any]) -> dict[str, Any]:
    """A model of the same architecture with few layers and small widths."""
    found = {**config, **config.get("text_config", {})}
    for name in ("text_config", "vision_config", "quantization_config"):
        found.pop(name, None)
    if "text_config" in config:
        found["model_type"] = f"{config['model_type']}_text"
    layers = _LAYERS.get(found["model_type"], 4)
    heads = found.get("num_attention_heads", 8)
    kv_heads = max(1, 8 * found.get("num_key_value_heads", heads) // heads)
    found |= {name: value for name, value in _SMALL.items() if found.get(name) is not None}
    found |= {"num_hidden_layers": layers, "pad_token_id": 0, "num_attention_heads": 8}
    found["num_key_value_heads"] = 8 if "kv_lora_rank" in found else kv_heads
    if found.get("layer_types"):
        found["layer_types"] = found["layer_types"][:layers]
    found.pop("eos_token_id", None)
    return found


def families() -> dict[str, dict[str, Any]]:
    """One model of each ``model_type`` in the catalogue, and GPT-2."""
    found: dict[str, dict[str, Any]] = {
        "gpt2": {"model_type": "gpt2", "n_embd": 512, "n_head": 8, "n_layer": 4, "vocab_size": 8192}
    }
    found["gpt2"]["n_positions"] = 1024
    for entry in catalogue():
        config = configuration_of(entry.name)
        assert config is not None
        found.setdefault(config["model_type"], shrunken(config))
    return found


_FAMILIES = families()
_TRAINING = Training(policy="bf16", keep_gradients=False, sequence=512, micro_batch=4)


def difference(config: dict[str, Any], options: Serving | Training, **tracing: Any) -> float:
    """How far the closed form is from the trace, in percent of the traced peak."""
    traced = trace_model(config, options, **tracing)
    return 100 * (closed_form_bytes(config, options) / traced.peak_requested_bytes - 1)


def test_the_families_are_those_of_the_catalogue() -> None:
    # Those that can be read besides are variants, but for Mamba's.
    assert set(model_types()) - set(_FAMILIES) == {
        *("bamba", "gemma", "gemma3_text", "glm", "llama4_text", "qwen2_moe")
    } - set(_FAMILIES)
    assert len(_FAMILIES) >= 19


@pytest.mark.parametrize("family", _FAMILIES)
def test_a_training_step(family: str) -> None:
    assert abs(difference(_FAMILIES[family], _TRAINING, steps=2)) < 1


@pytest.mark.parametrize("family", _FAMILIES)
def test_an_answer(family: str) -> None:
    options = Serving(weights="bf16", context=1024, batch=4)
    assert abs(difference(_FAMILIES[family], options)) < 1


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"policy": "autocast"}),
        ("qwen3", {"policy": "autocast"}),
        ("gpt2", {"policy": "autocast"}),
        ("gpt2", {"policy": "fp32"}),
        ("gemma2", {"policy": "fp32"}),
        ("llama", {"flash": False}),
        ("gemma2", {"flash": False}),
        ("deepseek_v3", {"flash": False}),
        ("llama", {"recompute": "full"}),
        ("mixtral", {"microbatches": 2}),
        ("phi3", {"keep_gradients": True}),
        ("qwen3", {"optimizer": "adamw-8bit"}),
        ("qwen3", {"optimizer": "sgd-momentum", "packed": True}),
        ("llama4", {"sequence": 1024, "micro_batch": 1}),
    ],
    ids=str,
)
def test_other_trainings(family: str, changes: dict[str, Any]) -> None:
    options = Training(**{**vars(_TRAINING), **changes})
    assert abs(difference(_FAMILIES[family], options, steps=2)) < 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Training(), "traced with policy bf16 or fp32 or autocast, got 'mixed'"),
        (Training(policy="bf16", loss="fused"), "traced with loss plain, got 'fused'"),
        (Serving(cache="fp8"), "traced with cache auto, got 'fp8'"),
        (Serving(weights="awq"), "weights stored as awq-128 cannot be traced"),
    ],
)
def test_what_plain_pytorch_cannot_do(options: Serving | Training, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        trace_model(_FAMILIES["llama"], options)


def test_a_mixture_in_fp32_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="trace a mixture of experts with policy bf16"):
        trace_model(_FAMILIES["mixtral"], Training(policy="fp32"))


def test_transformers_refuses_what_it_does_not_know() -> None:
    import torch

    config = {**_FAMILIES["llama"], "model_type": "voodoo"}
    with pytest.raises(InvalidArgumentError, match="cannot build a model of type 'voodoo'"):
        build_model(config, torch.bfloat16)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vramkit\[transformers\]'"):
        trace_model(_FAMILIES["llama"], _TRAINING)
