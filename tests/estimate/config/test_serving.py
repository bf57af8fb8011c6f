"""Memory of serving: against published figures, and by properties."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate import find_target
from vramkit.estimate.config import Parallel, Serving, advise, estimate_serving, read_model

GIB = 1 << 30


def weights_of(name: str, weights: str = "checkpoint", **degrees: int) -> int:
    options = Serving(weights=weights, parallel=Parallel(**degrees))
    amounts = estimate_serving(read_model(name), options).amounts
    return sum(a.size_bytes for a in amounts if a.name.startswith("weights"))


# DeepSeek-AI, "Insights into DeepSeek-V3" (arXiv 2505.09343), table 1.
@pytest.mark.parametrize(
    ("name", "kilobytes"),
    [("deepseek-v3", 70.272), ("qwen2.5-72b", 327.680), ("llama-3.1-405b", 516.096)],
)
def test_cache_per_token_as_in_deepseeks_comparison(name: str, kilobytes: float) -> None:
    assert estimate_serving(read_model(name)).cache_bytes_per_token == kilobytes * 1000


# The help text of llama.cpp's quantisation, for Llama 3 8B; GiB.
_LLAMA_CPP = {
    "Q8_0": 7.95,
    "Q6_K": 6.14,
    "Q5_K_M": 5.33,
    "Q5_K_S": 5.21,
    "Q5_0": 5.21,
    "Q4_K_M": 4.58,
    "Q4_K_S": 4.36,
    "Q4_0": 4.34,
    "Q3_K_L": 4.02,
    "Q3_K_M": 3.74,
    "Q3_K_S": 3.41,
    "Q2_K": 2.95,
}


@pytest.mark.parametrize("kind", _LLAMA_CPP)
def test_gguf_as_llama_cpp_says(kind: str) -> None:
    assert weights_of("llama-3-8b", kind.lower()) / GIB == pytest.approx(_LLAMA_CPP[kind], abs=0.01)


@pytest.mark.parametrize(
    ("name", "weights", "gib", "within"),
    [
        # Model card of gpt-oss, table 1: size of the checkpoint.
        ("gpt-oss-20b", "checkpoint", 12.8, 0.05),
        ("gpt-oss-120b", "checkpoint", 60.8, 0.05),
        # Files of Llama 2 as quantised by llama.cpp.
        ("llama-2-7b", "Q4_K_M", 3.80, 0.01),
        ("llama-2-70b", "Q4_K_M", 38.58, 0.01),
        # Exactly two bytes for each of the published parameters.
        ("llama-3.1-8b", "bf16", 2 * 8_030_261_248 / GIB, 1e-9),
    ],
)
def test_sizes_of_checkpoints(name: str, weights: str, gib: float, within: float) -> None:
    assert weights_of(name, weights) / GIB == pytest.approx(gib, abs=within)


# Sizes of published GGUF files, in GB.
_GGUF_FILES = {
    ("phi-4", "Q4_K_M"): 9.05,
    ("phi-3-mini-4k", "Q4_K_M"): 2.39,
    ("qwen2.5-7b", "Q4_K_M"): 4.68,
    ("gemma-2-9b", "Q4_K_M"): 5.76,
    ("mistral-7b-v0.3", "Q4_K_M"): 4.37,
    ("qwen3-30b-a3b", "Q4_K_M"): 18.56,
    ("deepseek-r1", "Q4_K_M"): 404.4,
}


@pytest.mark.parametrize(("name", "kind"), _GGUF_FILES)
def test_sizes_of_gguf_files(name: str, kind: str) -> None:
    assert weights_of(name, kind) / 1e9 == pytest.approx(_GGUF_FILES[name, kind], rel=0.002)


def test_the_cache_that_sglang_and_vllm_report() -> None:
    # vllm#21348: SGLang, Qwen3-235B, four GPUs: 367,404 tokens are 8.23 GiB each of K and V.
    parallel = Parallel(tensor=4)
    options = Serving(context=367_404, block_tokens=1, parallel=parallel)
    found = estimate_serving(read_model("qwen3-235b-a22b"), options).amount("KV cache")
    assert found / GIB == pytest.approx(2 * 8.23, abs=0.01)
    # vllm#34076: vLLM, Qwen3 30B-A3B: 24.0 GiB for 262,144 tokens.
    options = Serving(context=262_144)
    found = estimate_serving(read_model("qwen3-30b-a3b"), options).amount("KV cache")
    assert found == 24 * GIB


def test_windows_bound_the_cache() -> None:
    model = read_model("gemma-2-9b")
    short, long = (
        estimate_serving(model, Serving(context=context, block_tokens=1)).amount("KV cache")
        for context in (4096, 8192)
    )
    token = 2 * 8 * 256 * 2
    assert short == 42 * 4096 * token
    assert long == 21 * (4096 + 8192) * token
    kept = Serving(context=8192, block_tokens=1, windows=False)
    assert estimate_serving(model, kept).amount("KV cache") == 42 * 8192 * token
    paged = estimate_serving(model, Serving(context=8192)).amount("KV cache")
    assert paged == 21 * (4112 + 8192) * token
    text = str(estimate_serving(model))
    assert "Weights: bf16, converted from the checkpoint's float32." in text


def test_whole_blocks() -> None:
    model = read_model("llama-3.1-8b")
    sizes = [
        estimate_serving(model, Serving(context=context)).amount("KV cache")
        for context in (1, 16, 17)
    ]
    assert sizes == [16 * 131_072, 16 * 131_072, 32 * 131_072]


def test_states_do_not_grow_with_the_context() -> None:
    model = read_model("qwen3-next-80b-a3b")
    short, long = (estimate_serving(model, Serving(context=c, batch=3)) for c in (1024, 65_536))
    # 36 layers: 32 x 128 x 128 elements in fp32, and 8,192 channels x 3 in 16 bits.
    state = 36 * (32 * 128 * 128 * 4 + 8192 * 3 * 2)
    assert short.amount("recurrent states") == long.amount("recurrent states") == 3 * state
    assert long.amount("KV cache") == 3 * 65_536 * 12 * 2 * 2 * 256 * 2
    assert "Recurrent states are fp32" in str(short)


def test_dtypes_of_the_cache() -> None:
    sizes = {
        cache: estimate_serving(read_model("deepseek-v3"), Serving(cache=cache))
        for cache in ("auto", "fp8", "fp32")
    }
    found = {cache: each.cache_bytes_per_token for cache, each in sizes.items()}
    assert found == {"auto": 70_272, "fp8": 35_136, "fp32": 140_544}
    # vLLM's cache of sparse MLA: 656 bytes, beside 132 of the indexer.
    sparse = estimate_serving(read_model("deepseek-v3.2-exp"), Serving(cache="fp8"))
    assert sparse.cache_bytes_per_token == 61 * (656 + 132)


def test_tensor_ranks_split_heads_and_copy_what_they_cannot() -> None:
    def cache(name: str, tensor: int) -> int:
        options = Serving(parallel=Parallel(tensor=tensor))
        return estimate_serving(read_model(name), options).amount("KV cache")

    assert cache("llama-3.1-70b", 8) * 8 == cache("llama-3.1-70b", 1)
    assert cache("llama-3.1-70b", 16) == cache("llama-3.1-70b", 8)
    assert cache("deepseek-v3", 8) == cache("deepseek-v3", 1)


def test_experts_spread() -> None:
    tensor = weights_of("mixtral-8x7b", tensor=8)
    assert weights_of("mixtral-8x7b", tensor=8, expert=8) == tensor
    assert weights_of("mixtral-8x7b", tensor=8, expert=2) == tensor
    # Attention is on each of the data-parallel ranks, the experts are not.
    model = read_model("deepseek-v3")
    options = Serving(parallel=Parallel(data=32, expert=32), batch=32)
    found = estimate_serving(model, options)
    whole = estimate_serving(model, Serving())
    assert found.amount("weights: attention") == whole.amount("weights: attention")
    assert found.amount("weights: experts") * 32 == whole.amount("weights: experts")
    assert found.amount("KV cache") == whole.amount("KV cache")


def test_stages_share_the_layers_and_the_worst_is_named() -> None:
    model = read_model("llama-3.1-405b")
    options = Serving(parallel=Parallel(tensor=8, pipeline=4))
    estimate = estimate_serving(model, options)
    # 126 layers: 31, 32, 32 and 31.
    assert estimate.rank == "serving, a rank of pipeline stage 2 of 4, 32 GPUs"
    sizes = [len(stage) for stage in options.parallel.stage_layers(model)]
    assert sizes == [31, 32, 32, 31]
    given = Parallel(pipeline=2, stages=(100, 26))
    assert estimate_serving(model, Serving(parallel=given)).rank.startswith(
        "serving, a rank of pipeline stage 1 of 2"
    )


def test_the_answers_are_the_largest_that_fit() -> None:
    model = read_model("llama-3.1-8b")
    options = Serving(batch=4, utilisation=0.9)
    estimate = estimate_serving(model, options, target="a100-80gb")
    limit = int(find_target("a100-80gb").total_bytes * 0.9)
    for number, field in (
        (estimate.largest_context, "context"),
        (estimate.largest_batch, "batch"),
    ):
        for value, fits in ((number, True), (number + 16, False)):
            changed = Serving(**{"batch": 4, "utilisation": 0.9, field: value})
            total = estimate_serving(model, changed, target="a100-80gb").total_bytes
            assert (total <= limit) is fits
    assert estimate.needed == Parallel()


@pytest.mark.parametrize("target", ["l4", "h100"])
@pytest.mark.parametrize("utilisation", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("batch", [1, 3, 4, 40])
def test_the_parts_of_a_report_agree(target: str, utilisation: float, batch: int) -> None:
    options = Serving(batch=batch, utilisation=utilisation)
    found = estimate_serving("llama-3.1-8b", options, target=target)
    assert found.fits() is (found.largest_batch >= batch)
    assert found.fits() is (found.largest_context >= options.context)
    assert found.fits() is (found.needed == Parallel())
    assert found.fits() is found.fits(target) is found.fits(found.usable_bytes)
    assert found.as_dict()["fits"] is found.fits()
    advised = advise("llama-3.1-8b", options, target=target)
    assert all(change.fits is (change.total_bytes <= found.usable_bytes) for change in advised)


def test_a_size_counts_whole_and_a_gpu_in_part() -> None:
    found = estimate_serving("llama-3.1-8b", Serving(batch=4), target="l4")
    assert not found.fits()
    assert not found.fits("l4")
    assert found.fits("22GiB")
    assert found.fits(find_target("l4").total_bytes)
    assert "does not fit into 20.9 GiB, 95 % of 22.0 GiB" in str(found)


def test_what_never_fits() -> None:
    estimate = estimate_serving(read_model("kimi-k2"), target="t4")
    assert (estimate.largest_context, estimate.largest_batch) == (0, 0)
    assert not estimate.fits()
    assert not estimate.fits("100GiB")
    assert estimate.fits("2TiB")
    assert not estimate.fits("h200")
    assert not estimate.fits(find_target("h100"))
    assert estimate.needed is not None
    assert estimate.needed.gpus > 64


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        ("int8", 8 + 32 / 4096),
        ("awq", 4 + 20 / 128),
        ("awq-64", 4 + 20 / 64),
        ("fp8-block", 8 + 32 / 128**2),
        ("nf4", 4 + 8 / 64 + 32 / (64 * 256)),
        ("nvfp4", 4.5),
    ],
)
def test_bits_of_a_quantised_matrix(weights: str, bits: float) -> None:
    model = read_model("llama-2-7b")
    options = Serving(weights=weights)
    found = estimate_serving(model, options).amount("weights: attention")
    elements = 32 * 4 * 4096 * 4096
    assert found * 8 / elements == pytest.approx(bits, rel=1e-6)


def test_quantisation_of_the_configuration() -> None:
    small: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 512,
    }
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    estimate = estimate_serving(read_model({**small, "quantization_config": gptq}))
    assert "Weights: gptq-64; unquantised: embedding" in str(estimate)
    odd = read_model({**small, "quantization_config": {"quant_method": "quip"}})
    with pytest.raises(InvalidArgumentError, match="quantisation 'quip' is not known in this form"):
        estimate_serving(odd)
    odd = read_model({**small, "torch_dtype": "float8"})
    with pytest.raises(InvalidArgumentError, match="dtype 'float8' of the checkpoint is not known"):
        estimate_serving(odd)


def test_the_result_as_text_and_json() -> None:
    model = read_model("llama-4-scout")
    estimate = estimate_serving(model, Serving(context=300_000, parallel=Parallel(tensor=8)))
    text = str(estimate)
    assert text.startswith("llama-4-scout on h100: serving, each rank, 8 GPUs\n")
    assert "CUDA graphs" in text
    assert "GPUs needed (h100): 4 (tensor 4 x pipeline 1)" in text
    assert "The context exceeds the 262,144 positions of the configuration." in text
    loaded = json.loads(estimate.json())
    assert loaded["total_bytes"] == estimate.total_bytes
    assert loaded["low_bytes"] < loaded["total_bytes"] < loaded["high_bytes"]
    assert loaded["fits"] is True
    assert estimate._repr_html_().startswith("<pre>llama-4-scout")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"context": 0}, "context must be an integer from 1 to"),
        ({"batch": 1.5}, "batch must be an integer from 1 to"),
        ({"utilisation": 0}, "utilisation must be above 0"),
        ({"cache": "fp6"}, "cache 'fp6' is not known"),
        ({"weights": "int3"}, "weights 'int3' are not known; known are checkpoint"),
        ({"parallel": Parallel(tensor=3)}, "3 ranks cannot split the 32 heads of q_proj evenly"),
        ({"parallel": Parallel(expert=2)}, "2 expert ranks with 1 ranks for each expert do not"),
        ({"parallel": Parallel(pipeline=64)}, "32 layers cannot be split into 64 pipeline stages"),
        ({"parallel": Parallel(context=2)}, "context parallelism is for training"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        estimate_serving(read_model("llama-3.1-8b"), Serving(**options))


def test_layouts_that_cannot_work() -> None:
    with pytest.raises(InvalidArgumentError, match="tensor must be an integer from 1"):
        Parallel(tensor=0)
    with pytest.raises(InvalidArgumentError, match="stages has 1 entries for 2 pipeline stages"):
        Parallel(pipeline=2, stages=(32,))
    with pytest.raises(InvalidArgumentError, match=r"stages \(1, 2\) do not sum to the 32 layers"):
        Parallel(pipeline=2, stages=(1, 2)).stage_layers(read_model("llama-3.1-8b"))
    estimate = estimate_serving(read_model("llama-3.1-8b"))
    number: Any = 1.5
    with pytest.raises(ArgumentTypeError, match="budget must be an integer number of bytes"):
        estimate.fits(number)


BAMBA = {
    "model_type": "bamba",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "attn_layer_indices": [1],
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}


def test_state_spaces() -> None:
    model = read_model(BAMBA)
    assert model.kinds() == {"state space": 3, "GQA": 1}
    estimate = estimate_serving(model, Serving(context=160, batch=2))
    # 128 channels with 16 elements in fp32, and 3 columns of 128 + 2 x 2 x 16 channels.
    assert estimate.amount("recurrent states") == 2 * 3 * (128 * 16 * 4 + 192 * 3 * 2)
    assert estimate.amount("KV cache") == 2 * 160 * 2 * 2 * 16 * 2
    split = estimate_serving(model, Serving(batch=2, parallel=Parallel(tensor=2)))
    assert split.amount("recurrent states") * 2 == estimate.amount("recurrent states")


def test_a_scheme_for_experts_needs_some() -> None:
    with pytest.raises(InvalidArgumentError, match="mxfp4 quantises routed experts only, and"):
        estimate_serving(read_model("llama-3.1-8b"), Serving(weights="mxfp4"))
