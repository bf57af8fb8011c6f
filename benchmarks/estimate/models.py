"""The training steps that were measured on an H100: thirteen models of timm and transformers.

``make_step`` of each builds model, optimizer and data on ``"cuda"`` and returns what runs one step.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

Step = Callable[[], None]

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


@dataclass(frozen=True)
class Workload:
    """A training step, described so that other estimators can be told of it.

    Attributes:
        build: Makes the model, on the device that is the default.
        shape: The shape of its input: images, or tokens.
        precision: ``"fp32"``, ``"bf16"`` (weights too) or ``"autocast"``.
        optimizer: ``"adamw"`` or ``"sgd"`` with momentum.
        channels_last: Whether model and images are channels-last.
        checkpoint: Whether layers are checkpointed.
    """

    build: Callable[[], Any]
    shape: tuple[int, ...]
    precision: str
    optimizer: str = "adamw"
    channels_last: bool = False
    checkpoint: bool = False

    @property
    def reads_images(self) -> bool:
        """Whether the input is images."""
        return len(self.shape) == 4

    def model(self) -> Any:
        """Build the model in its precision, on the default device."""
        model = self.build()
        if self.precision == "bf16":
            model = model.to(torch.bfloat16)
        if self.checkpoint:
            model.gradient_checkpointing_enable()
        return model

    def make_step(self, made: Any = None) -> Step:
        """Build everything on ``"cuda"`` and return what runs one step.

        Args:
            made: The model on ``"cuda"``, where it was built before.
        """
        model = self.model().to("cuda") if made is None else made
        model.train()
        inputs, labels = self._data()
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer: Any = (
            torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            if self.optimizer == "sgd"
            else torch.optim.AdamW(model.parameters(), 1e-4)
        )
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "autocast"):
                if self.reads_images:
                    loss = functional.cross_entropy(model(inputs), labels)
                else:
                    loss = model(input_ids=inputs, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def _data(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.reads_images:
            images = torch.randn(self.shape, device="cuda")
            return images, torch.randint(0, 1000, self.shape[:1], device="cuda")
        tokens = torch.randint(0, 30000, self.shape, device="cuda")
        return tokens, tokens


def _vision(
    name: str, batch: int, size: int = 224, *, amp: bool = True, sgd: bool = False, cl: bool = False
) -> Workload:
    def build() -> Any:
        import timm

        return timm.create_model(name)

    shape = (batch, 3, size, size)
    precision = "autocast" if amp else "fp32"
    return Workload(build, shape, precision, "sgd" if sgd else "adamw", channels_last=cl)


def _text(
    kind: str,
    batch: int,
    length: int,
    precision: str,
    *,
    checkpoint: bool = False,
    **options: Any,
) -> Workload:
    def build() -> Any:
        import transformers

        config_name, model_name = _CLASSES[kind]
        config = getattr(transformers, config_name)(**options)
        config.decoder_start_token_id = 0 if kind == "t5" else None
        return getattr(transformers, model_name)(config)

    return Workload(build, (batch, length), precision, checkpoint=checkpoint)


MODELS: dict[str, Workload] = {
    "resnet50_b64_cl": _vision("resnet50", 64, cl=True, sgd=True),
    "resnet50_fp32": _vision("resnet50", 32, amp=False),
    "convnext_t": _vision("convnext_tiny", 64),
    "vit_b": _vision("vit_base_patch16_224", 64),
    "effnet": _vision("efficientnet_b3", 32, 300, cl=True),
    "vgg16": _vision("vgg16", 32, sgd=True),
    "gpt2_fp32": _text("gpt2", 8, 1024, "fp32"),
    "gpt2_amp": _text("gpt2", 8, 1024, "autocast"),
    "bert_amp": _text("bert", 32, 256, "autocast"),
    "llama_bf16": _text("llama", 4, 1024, "bf16", **_LLAMA),
    "llama_ckpt": _text("llama", 8, 2048, "bf16", checkpoint=True, **_LLAMA),
    "dsv3_tiny": _text("dsv3", 4, 1024, "bf16", **_DEEPSEEK),
    "t5": _text("t5", 8, 512, "autocast", **_T5),
}
