"""Steps of others: language and speech models of transformers and peft, trained or generating.

Sizes, types, optimizers and the order of operations belong to the recorded figures. Each entry
builds a step on ``"cuda"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.estimate.training import Step, functions, training

_BF16, _FP16 = torch.bfloat16, torch.float16


def _own_loss(model: Any, **inputs: Tensor) -> Callable[[], Tensor]:
    """The loss that a model of transformers computes itself."""

    def loss_of() -> Tensor:
        return model(**inputs).loss

    return loss_of


def _generation(model: Any, tokens: Tensor, **options: Any) -> Step:
    """Generates from prompts without padding; what is made is dropped."""
    mask = torch.ones_like(tokens)

    def step() -> None:
        model.generate(input_ids=tokens, attention_mask=mask, **options)

    return step


def whisper() -> Step:
    """A Whisper of four and four layers, fp16 with a scaler, clipped, AdamW."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=20000,
        encoder_layers=4,
        decoder_layers=4,
        d_model=512,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).to("cuda")
    sound = torch.randn(4, 80, 3000, device="cuda")
    words = torch.randint(3, 20000, (4, 128), device="cuda")
    loss_of = _own_loss(model, input_features=sound, labels=words)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    return training(loss_of, optimizer, autocast=_FP16, scaled=True, clip=1.0)


def gemma2() -> Step:
    """A Gemma 2 of six layers in bf16 with checkpoints and a sliding window, fused AdamW."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=96,
        sliding_window=256,
        use_cache=False,
    )
    model = Gemma2ForCausalLM(config).to("cuda", _BF16)
    model.gradient_checkpointing_enable()
    model.train()
    tokens = torch.randint(0, 32000, (4, 512), device="cuda")
    loss_of = _own_loss(model, input_ids=tokens, labels=tokens)
    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-4, fused=True))


def mixtral() -> Step:
    """A Mixtral of four layers and eight experts in bf16, AdamW."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=2,
        use_cache=False,
    )
    model = MixtralForCausalLM(config).to("cuda", _BF16)
    tokens = torch.randint(0, 32000, (4, 512), device="cuda")
    loss_of = _own_loss(model, input_ids=tokens, labels=tokens)
    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-4))


def clip() -> Step:
    """A CLIP of six layers for text and six for images, bf16 autocast, AdamW."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "vocab_size": 30000,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
    }
    vision = {
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "patch_size": 16,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).to("cuda")
    images = torch.randn(32, 3, 224, 224, device="cuda")
    tokens = torch.randint(3, 30000, (32, 77), device="cuda")

    def loss_of() -> Tensor:
        return model(input_ids=tokens, pixel_values=images, return_loss=True).loss

    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-4), autocast=_BF16)


def generate() -> Step:
    """A Llama of eight layers in bf16 makes 24 tokens after prompts of 384."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config).to("cuda", _BF16).eval()
    tokens = torch.randint(3, 32000, (8, 384), device="cuda")
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    return _generation(model, tokens, **options)


def sampled() -> Step:
    """A GPT-2 of six layers in fp32 draws 16 tokens by top-k and top-p."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=6)).to("cuda").eval()
    tokens = torch.randint(3, 32000, (4, 128), device="cuda")
    draw = {"do_sample": True, "top_k": 50, "top_p": 0.95}
    return _generation(model, tokens, max_new_tokens=16, min_new_tokens=16, pad_token_id=0, **draw)


def static_cache() -> Step:
    """A Mistral of six layers in fp16 makes 200 tokens after prompts of 200."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=16000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        sliding_window=None,
    )
    model = MistralForCausalLM(config).to("cuda", _FP16).eval()
    tokens = torch.randint(3, 16000, (8, 200), device="cuda")
    options = {"max_new_tokens": 200, "min_new_tokens": 200, "do_sample": False, "pad_token_id": 0}
    return _generation(model, tokens, **options)


def _small_t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(num_layers=4, num_decoder_layers=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).to("cuda")


def beams() -> Step:
    """A T5 of four and four layers in fp16 makes 12 tokens with four beams."""
    model = _small_t5().half().eval()
    tokens = torch.randint(2, 32000, (4, 128), device="cuda")
    return _generation(model, tokens, num_beams=4, max_new_tokens=12, min_new_tokens=12)


def adafactor() -> Step:
    """A T5 of four and four layers, bf16 autocast, PyTorch's Adafactor."""
    model = _small_t5()
    texts = torch.randint(0, 32000, (16, 256), device="cuda")
    answers = torch.randint(0, 32000, (16, 64), device="cuda")
    loss_of = _own_loss(model, input_ids=texts, labels=answers)
    return training(loss_of, torch.optim.Adafactor(model.parameters()), autocast=_BF16)


def hf_adafactor() -> Step:
    """A BART of three and three layers, fp32, Adafactor of transformers with relative steps."""
    from transformers import Adafactor, BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=20000,
        encoder_layers=3,
        decoder_layers=3,
        d_model=512,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
    )
    model = BartForConditionalGeneration(config).to("cuda")
    texts = torch.randint(4, 20000, (16, 200), device="cuda")
    answers = torch.randint(4, 20000, (16, 64), device="cuda")
    loss_of = _own_loss(model, input_ids=texts, labels=answers)
    optimizer = Adafactor(model.parameters(), relative_step=True, warmup_init=True, lr=None)
    return training(loss_of, optimizer)


def peft_qwen() -> Step:
    """A Qwen 2 of eight layers in bf16, of which peft's low-rank adapters are trained."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=8,
        num_attention_heads=14,
        num_key_value_heads=2,
        use_cache=False,
    )
    model = Qwen2ForCausalLM(config).to("cuda", _BF16)
    adapters = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "v_proj", "up_proj"],
    )
    model = get_peft_model(model, adapters)
    tokens = torch.randint(0, 32000, (4, 512), device="cuda")
    loss_of = _own_loss(model, input_ids=tokens, labels=tokens)
    trained = [each for each in model.parameters() if each.requires_grad]
    return training(loss_of, torch.optim.AdamW(trained, 1e-4))


def deberta() -> Step:
    """A DeBERTa of four layers, bf16 autocast; its masked loss has a size that depends on data."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=30000,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=2048,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=64,
        num_labels=3,
    )
    model = DebertaV2ForSequenceClassification(config).to("cuda")
    tokens = torch.randint(0, 30000, (16, 256), device="cuda")
    labels = torch.randint(0, 3, (16,), device="cuda")
    mask = torch.ones_like(tokens)
    loss_of = _own_loss(model, input_ids=tokens, attention_mask=mask, labels=labels)
    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-5), autocast=_BF16)


def roberta() -> Step:
    """A RoBERTa of four layers, fp16 without a scaler, two micro-batches, values clipped."""
    from transformers import RobertaConfig, RobertaForTokenClassification

    config = RobertaConfig(
        vocab_size=30000,
        hidden_size=768,
        num_hidden_layers=4,
        num_attention_heads=12,
        max_position_embeddings=600,
        num_labels=9,
    )
    model = RobertaForTokenClassification(config).to("cuda")
    tokens = torch.randint(5, 30000, (16, 384), device="cuda")
    mask = torch.ones_like(tokens)
    mask[:, 300:] = 0
    labels = torch.randint(0, 9, (16, 384), device="cuda")
    labels[:, 300:] = -100
    optimizer = torch.optim.AdamW(model.parameters(), 2e-5)

    def step() -> None:
        for _ in range(2):
            with torch.autocast("cuda", _FP16):
                loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss / 2
            loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def hf_bert_eval() -> Step:
    """A BERT in inference mode, bf16 autocast; its states are averaged over the tokens."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig()).to("cuda").eval()
    tokens = torch.randint(0, 30000, (64, 128), device="cuda")
    mask = torch.ones_like(tokens)

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cuda", _BF16):
            states = model(tokens, mask).last_hidden_state
            (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return step


def mamba() -> Step:
    """A Mamba of two layers without its own kernels, fp32, AdamW."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=8000, hidden_size=256, num_hidden_layers=2, use_cache=False)
    model = MambaForCausalLM(config).to("cuda")
    tokens = torch.randint(0, 8000, (4, 128), device="cuda")
    loss_of = _own_loss(model, input_ids=tokens, labels=tokens)
    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-3))


def wav2vec() -> Step:
    """A wav2vec 2.0 of four layers on three seconds of sound, CTC loss, fp32, AdamW."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(num_hidden_layers=4, mask_time_prob=0.0, layerdrop=0.0)
    model = Wav2Vec2Model(config).to("cuda")
    head = nn.Linear(768, 32).to("cuda")
    sound = torch.randn(4, 48000, device="cuda")
    letters = torch.randint(1, 32, (4, 40), device="cuda")
    lengths = torch.full((4,), 40)

    def loss_of() -> Tensor:
        logits = head(model(sound).last_hidden_state).log_softmax(-1).transpose(0, 1)
        heard = torch.full((4,), logits.shape[0])
        return functional.ctc_loss(logits, letters, heard, lengths)

    parameters = nn.ModuleList([model, head]).parameters()
    return training(loss_of, torch.optim.AdamW(parameters, 1e-4))


TEXT = functions(
    *(whisper, gemma2, mixtral, clip, generate, sampled, static_cache, beams, adafactor),
    *(hf_adafactor, peft_qwen, deberta, roberta, hf_bert_eval, mamba, wav2vec),
)
