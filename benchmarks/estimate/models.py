"""The training steps that were measured on an H100: thirteen models of timm and transformers.

Each function builds model, optimizer and data on ``"cuda"`` and returns what runs one step.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Step = Callable[[], None]
MakeStep = Callable[[], Step]

_LLAMA = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "use_cache": False,
}
_DEEPSEEK = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 16,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 256,
    "q_lora_rank": 512,
    "vocab_size": 32000,
    "use_cache": False,
}
_T5 = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
_CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "bert": ("BertConfig", "BertForMaskedLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "dsv3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}


def import_torchvision() -> None:
    """Import torchvision; one built for CUDA lacks its operators beside a torch without it."""
    try:
        __import__("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        meta = "torchvision._meta_registrations"
        sys.modules[meta] = types.ModuleType(meta)
        __import__("torchvision")


def _vision(
    name: str, batch: int, size: int = 224, *, amp: bool = True, sgd: bool = False, cl: bool = False
) -> MakeStep:
    def make_step() -> Step:
        import timm

        model = timm.create_model(name).to("cuda")
        images = torch.randn(batch, 3, size, size, device="cuda")
        labels = torch.randint(0, 1000, (batch,), device="cuda")
        if cl:
            model = model.to(memory_format=torch.channels_last)
        optimizer: Any = (
            torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            if sgd
            else torch.optim.AdamW(model.parameters(), 1e-4)
        )
        if cl:
            images = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return make_step


def _text(
    kind: str,
    batch: int,
    length: int,
    dtype: torch.dtype | None = None,
    *,
    amp: bool = False,
    checkpoint: bool = False,
    **options: Any,
) -> MakeStep:
    def make_step() -> Step:
        import transformers

        config_name, model_name = _CLASSES[kind]
        config = getattr(transformers, config_name)(**options)
        config.decoder_start_token_id = 0 if kind == "t5" else None
        model = getattr(transformers, model_name)(config)
        if dtype is not None:
            model = model.to(dtype)
        model = model.to("cuda").train()
        if checkpoint:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        tokens = torch.randint(0, 30000, (batch, length), device="cuda")

        def step() -> None:
            with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return make_step


MODELS: dict[str, MakeStep] = {
    "resnet50_b64_cl": _vision("resnet50", 64, cl=True, sgd=True),
    "resnet50_fp32": _vision("resnet50", 32, amp=False),
    "convnext_t": _vision("convnext_tiny", 64),
    "vit_b": _vision("vit_base_patch16_224", 64),
    "effnet": _vision("efficientnet_b3", 32, 300, cl=True),
    "vgg16": _vision("vgg16", 32, sgd=True),
    "gpt2_fp32": _text("gpt2", 8, 1024),
    "gpt2_amp": _text("gpt2", 8, 1024, amp=True),
    "bert_amp": _text("bert", 32, 256, amp=True),
    "llama_bf16": _text("llama", 4, 1024, torch.bfloat16, **_LLAMA),
    "llama_ckpt": _text("llama", 8, 2048, torch.bfloat16, checkpoint=True, **_LLAMA),
    "dsv3_tiny": _text("dsv3", 4, 1024, torch.bfloat16, **_DEEPSEEK),
    "t5": _text("t5", 8, 512, amp=True, **_T5),
}
