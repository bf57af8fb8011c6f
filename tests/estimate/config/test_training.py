"""Memory of training: against published figures, and by properties."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config import Architecture, Parallel, Training, estimate_training, read_model
from vramkit.estimate.config._architecture import Weight
from vramkit.estimate.config._model_states import StatePlan, states_of
from vramkit.estimate.config._parallel import Cut
from vramkit.estimate.config._policies import policy_of

GIB = 1 << 30


def gpt(heads: int, hidden: int, layers: int) -> Architecture:
    """A GPT as in Megatron-LM's papers."""
    return read_model(
        {
            "model_type": "gpt2",
            "n_embd": hidden,
            "n_head": heads,
            "n_layer": layers,
            "n_positions": 2048,
            "vocab_size": 51_200,
        }
    )


# ZeRO (arXiv 1910.02054), figure 1: 7.5 billion parameters on 64 GPUs, in GB.
@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_as_in_the_zero_paper(zero: int, gigabytes: float) -> None:
    weight = Weight("mlp", "w", (7_500_000, 1000), quantised=True)
    plan = StatePlan(policy_of("mixed-16bit-gradients"), "adamw", zero, Cut(), 64, 64)
    states = states_of([weight], plan)
    total = states.weights + states.gradients + states.optimizer
    assert states.parameters == 7_500_000_000
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.05)


# Megatron-LM's answer in NVIDIA/Megatron-LM#654: 18 bytes for a parameter, 12 of them sharded by
# the distributed optimizer.
@pytest.mark.parametrize(("zero", "factor"), [(0, 18), (1, 6 + 12 / 4)])
def test_bytes_for_a_parameter_as_in_megatron(zero: int, factor: float) -> None:
    options = Training(zero=zero, parallel=Parallel(data=4))
    estimate = estimate_training(read_model("llama-3.1-8b"), options)
    states = sum(map(estimate.amount, ("weights", "gradients", "optimizer state")))
    assert states == pytest.approx(factor * 8_030_261_248, rel=1e-9)


# Korthikanti et al. (arXiv 2205.05198), table 2: bytes of a layer over s b h; the part that every
# rank has, the part that tensor ranks split, and how often the term 5 a s / h, which they split.
_TABLE = {
    "no parallelism": ((1, False, "none"), (34, 0, 1)),
    "tensor": ((8, False, "none"), (10, 24, 1)),
    "tensor and sequence": ((8, True, "none"), (0, 34, 1)),
    "tensor, selective": ((8, False, "selective"), (10, 24, 0)),
    "tensor and sequence, selective": ((8, True, "selective"), (0, 34, 0)),
    "full": ((8, False, "full"), (2, 0, 0)),
}


@pytest.mark.parametrize("case", _TABLE)
@pytest.mark.parametrize(("heads", "hidden"), [(96, 12_288), (128, 20_480)])
def test_activations_as_in_megatrons_table(case: str, heads: int, hidden: int) -> None:
    (tensor, sequence_parallel, recompute), (whole, split, often) = _TABLE[case]
    sizes = []
    for layers in (2, 3):
        options = Training(
            sequence=2048,
            recompute=recompute,
            flash=False,
            sequence_parallel=sequence_parallel,
            parallel=Parallel(tensor=tensor),
        )
        estimate = estimate_training(gpt(heads, hidden, layers), options)
        sizes.append(estimate.amount("activations"))
    scores = often * 5 * heads * 2048 / hidden
    factor = (sizes[1] - sizes[0]) / (2048 * hidden)
    assert factor == pytest.approx(whole + (split + scores) / tensor, rel=1e-6)


# The same paper, section 5: selective recomputation saves 70 % for GPT-3 and 65 % for MT-NLG 530B.
@pytest.mark.parametrize(("heads", "hidden", "saved"), [(96, 12_288, 0.70), (128, 20_480, 0.65)])
def test_selective_recomputation_saves_what_the_paper_says(
    heads: int, hidden: int, saved: float
) -> None:
    options = Training(sequence=2048, flash=False)
    kept, selective = (
        estimate_training(gpt(heads, hidden, 4), replace(options, recompute=recompute))
        for recompute in ("none", "selective")
    )
    mask = 2048 * hidden
    part = 1 - (selective.amount("activations") - mask) / (kept.amount("activations") - mask)
    assert part == pytest.approx(saved, abs=0.006)


def test_stages_hold_micro_batches_in_flight() -> None:
    model = read_model("llama-3.1-70b")
    options = Training(microbatches=16, parallel=Parallel(tensor=8, pipeline=4))
    estimate = estimate_training(model, options)
    assert estimate.rank == "training, a rank of pipeline stage 1 of 4, 32 GPUs"
    assert estimate.in_flight == 4
    assert len(estimate.stage_bytes) == 4
    assert max(estimate.stage_bytes) == estimate.total_bytes
    one = estimate_training(model, replace(options, microbatches=1))
    assert estimate.amount("activations") == 4 * one.amount("activations")


def test_the_stage_with_the_logits_may_be_the_worst() -> None:
    options = Training(parallel=Parallel(pipeline=2), sequence=8192, recompute="full")
    estimate = estimate_training(read_model("llama-3.2-1b"), options)
    assert "pipeline stage 2 of 2" in estimate.rank
    # The tied matrix is on both stages but trained once.
    assert estimate.trainable == 1_235_814_400


def test_loss_and_logits() -> None:
    model, tokens = read_model("llama-3.1-8b"), 4096
    ends = 2 * tokens * 4096 * 2
    found = {
        loss: estimate_training(model, Training(loss=loss)).amount("logits and loss") - ends
        for loss in ("plain", "vocab-parallel", "fused")
    }
    assert found["plain"] == tokens * 128_256 * 12
    assert found["vocab-parallel"] == tokens * 128_256 * 6
    assert found["fused"] == tokens * 4096 * 8
    options = Training(loss="vocab-parallel", parallel=Parallel(tensor=8))
    cut = estimate_training(model, options).amount("logits and loss")
    assert cut == (found["vocab-parallel"] + ends) / 8


def test_experts_have_their_own_replicas() -> None:
    model = read_model("mixtral-8x7b")
    # Eight ranks share the optimizer state of what is dense, and one that of each expert.
    options = Training(zero=1, parallel=Parallel(data=8, expert=8))
    estimate = estimate_training(model, options)
    experts = 32 * 3 * 4096 * 14_336
    dense = 46_702_792_704 - 8 * experts
    assert estimate.amount("weights") == 2 * (experts + dense)
    assert estimate.amount("optimizer state") == 12 * experts + 12 * dense // 8
    assert estimate.amount("activations") > 0


def test_expert_and_tensor_ranks_together() -> None:
    model = read_model("mixtral-8x7b")
    whole = estimate_training(model)
    for parallel in (
        Parallel(tensor=4, data=4, expert=4),
        Parallel(tensor=4, data=4, expert=8, expert_tensor=1),
    ):
        cut = estimate_training(model, Training(parallel=parallel))
        spread = parallel.expert * (parallel.expert_tensor or 4)
        experts = 32 * 8 * 3 * 4096 * 14_336 * 2
        dense = whole.amount("weights") - experts
        assert cut.amount("weights") == pytest.approx(dense / 4 + experts / spread, rel=1e-3)


def test_context_ranks_split_tokens() -> None:
    model = read_model("llama-3.1-8b")
    options = Training(sequence=32_768)
    whole = estimate_training(model, options)
    split = estimate_training(model, replace(options, parallel=Parallel(context=4)))
    assert whole.amount("activations") == 4 * split.amount("activations")


def test_packing_costs_only_without_flash() -> None:
    model = read_model("qwen2.5-0.5b")
    options = Training(sequence=512, micro_batch=4)

    def kept(**changes: Any) -> int:
        return estimate_training(model, replace(options, **changes)).amount("activations")

    assert kept(packed=True) == kept()
    more = kept(packed=True, flash=False) - kept(flash=False)
    assert more == 24 * (4 * 512) * 14 * (4 * 512 - 512) * 2


def test_recomputation_of_whole_layers() -> None:
    model = read_model("llama-3.1-8b")
    kept = estimate_training(model, Training(loss="fused"))
    again = estimate_training(model, Training(loss="fused", recompute="full"))
    assert again.amount("activations") == 32 * 4096 * 4096 * 2
    loss = 4096 * 4096 * 8
    assert again.amount("layer computed again") == kept.amount("activations") // 32 - loss


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        ("adamw", 8),
        ("adamw-8bit", 2.03125),
        ("adamw-bf16", 4),
        ("lion", 4),
        ("sgd-momentum", 4),
        ("sgd", 0),
        ("adafactor", 0),
    ],
)
def test_optimizers(optimizer: str, factor: float) -> None:
    model = read_model("llama-3.1-8b")
    estimate = estimate_training(model, Training(policy="fp32", optimizer=optimizer))
    found = estimate.amount("optimizer state") / 8_030_261_248
    assert found == pytest.approx(factor, abs=0.002)


def test_muon_keeps_one_moment_for_matrices() -> None:
    estimate = estimate_training(read_model("llama-3.1-8b"), Training(optimizer="muon"))
    rest = 2 * 128_256 * 4096 + 65 * 4096
    matrices = 8_030_261_248 - rest
    assert estimate.amount("optimizer state") == 4 * 8_030_261_248 + 4 * matrices + 8 * rest


def test_policies() -> None:
    model = read_model("llama-3.1-8b")
    count = 8_030_261_248
    sizes = {
        policy: estimate_training(model, Training(policy=policy))
        for policy in ("fp32", "bf16", "autocast", "fp8")
    }
    states = ("weights", "gradients", "optimizer state")
    found = {name: sum(map(each.amount, states)) / count for name, each in sizes.items()}
    assert found["fp32"] == 16
    assert found["bf16"] == 8
    assert found["autocast"] == 16
    # Two copies in fp8 in place of one in bf16, with a scale for each 16,384.
    assert found["fp8"] == pytest.approx(18, abs=0.001)
    matrices = count - 128_256 * 4096 - 65 * 4096
    tied = estimate_training(read_model("llama-3.2-1b"), Training(policy="autocast"))
    cached = tied.amount("autocast's copies of weights")
    assert cached == 2 * (1_235_814_400 - 33 * 2048)
    assert sizes["autocast"].amount("autocast's copies of weights") == 2 * matrices
    assert sizes["fp8"].amount("activations") < sizes["bf16"].amount("activations")
    assert sizes["fp32"].amount("activations") > 1.9 * sizes["bf16"].amount("activations")


def test_zero_3_gathers_layers() -> None:
    model = read_model("llama-3.1-70b")
    options = Training(zero=3, recompute="full", parallel=Parallel(data=64))
    estimate = estimate_training(model, options)
    assert estimate.amount("weights") == -(-2 * 70_553_706_496 // 64)
    layer = 855_654_400
    ends = 2 * 128_256 * 8192 + 8192
    assert estimate.amount("gathered layers") == 2 * (3 * layer + ends)
    assert "two layers, one layer's gradients, embedding, norm, head" in str(estimate)
    adapters = estimate_training(model, replace(options, lora_rank=8))
    assert "two layers, embedding, norm, head" in str(adapters)
    assert estimate.fits()


def test_lora_and_qlora() -> None:
    model = read_model("llama-2-7b")
    options = Training(lora_rank=8)
    estimate = estimate_training(model, options)
    # LoRA's paper counts r x (in + out) for each matrix; four of 4096 x 4096 in each layer.
    assert estimate.trainable == 32 * 4 * 8 * (4096 + 4096)
    assert estimate.amount("frozen weights") == 2 * 6_738_415_616
    assert estimate.amount("adapters") == 2 * estimate.trainable
    assert estimate.amount("optimizer state") == 12 * estimate.trainable
    quantised = estimate_training(model, replace(options, frozen="nf4", lora_targets="linear"))
    assert quantised.trainable == 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11_008))
    # QLoRA's paper, section 3: 0.127 bits for a parameter's scales.
    linear = 6_738_415_616 - 2 * 32_000 * 4096 - 65 * 4096
    rest = 2 * (6_738_415_616 - linear)
    assert quantised.amount("frozen weights") == pytest.approx(linear * 4.127 / 8 + rest, rel=1e-5)
    assert quantised.amount("dequantised matrix") == 2 * 4096 * 11_008
    tensor = replace(options, parallel=Parallel(tensor=8))
    assert estimate_training(model, tensor).trainable == estimate.trainable


def test_the_result_as_text_and_json() -> None:
    options = Training(zero=2, parallel=Parallel(tensor=8, data=16, expert=16, context=2))
    estimate = estimate_training(read_model("deepseek-v3"), options, target="h200")
    text = str(estimate)
    assert text.startswith("deepseek-v3 on h200: training, each rank, 256 GPUs\n")
    assert "trainable parameters: 671,026,404,352" in text
    assert "Experts receive equally many tokens" in text
    assert "ZeRO 2 over 32" in text
    loaded = json.loads(estimate.json())
    assert loaded["options"]["zero"] == 2
    assert loaded["stage_bytes"] == [estimate.total_bytes]


@pytest.mark.parametrize("name", ["gemma-3-4b", "qwen3-next-80b-a3b", "gpt-oss-20b", "glm-4.5-air"])
def test_each_architecture_has_an_estimate(name: str) -> None:
    estimate = estimate_training(read_model(name), Training(sequence=1024))
    assert estimate.amount("activations") > 0
    assert estimate.low_bytes < estimate.total_bytes < estimate.high_bytes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"zero": 4}, "zero must be an integer from 0 to 3, got 4"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw"),
        ({"policy": "fp4"}, "the policy 'fp4' is not known; known are fp32"),
        ({"recompute": "some"}, "recompute must be one of none"),
        (
            {"sequence": 4097, "parallel": Parallel(context=2)},
            "4,097 tokens cannot be split over 2 context ranks",
        ),
        ({"parallel": Parallel(expert=4, data=2)}, "4 expert ranks with 1 ranks for each expert"),
        ({"frozen": "int3", "lora_rank": 4}, "weights 'int3' are not known"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        estimate_training(read_model("mixtral-8x7b"), Training(**options))


def test_the_fewest_replicas_are_found() -> None:
    model = read_model("llama-3.1-70b")
    for options in (
        Training(zero=3, recompute="full"),
        Training(zero=1, recompute="full", parallel=Parallel(tensor=8)),
    ):
        needed = estimate_training(model, options).needed
        assert needed is not None
        assert estimate_training(model, replace(options, parallel=needed)).fits()
        fewer = replace(options, parallel=replace(needed, data=needed.data - 1))
        assert not estimate_training(model, fewer).fits()
    assert estimate_training(model, Training(zero=3)).needed is None
    assert "do not help without ZeRO" in str(estimate_training(model, Training()))
    small = estimate_training(read_model("llama-3.2-1b"), Training())
    assert ("GPUs needed (h100)", "1 (1 data-parallel replica)") in small.answers()
