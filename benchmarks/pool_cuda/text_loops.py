"""The loops of the CUDA benchmark that run a Llama: training, offloading, generation, serving."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import torch
from torch import nn

Step = Callable[[], torch.Tensor]
VOCABULARY = 32_000
LANES = 4
REQUESTS_A_LANE = 2
NEW_TOKENS = 24


def _model(
    hidden: int, inner: int, layers: int, heads: int, *, use_cache: bool = False
) -> nn.Module:
    transformers = import_module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        use_cache=use_cache,
    )
    with torch.device("cuda"):
        model: nn.Module = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    return model


def backward_and_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    """Go back through the graph of ``loss``, let the optimizer step, and drop the gradients."""
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def llama(draw: random.Random, *, checkpointed: bool) -> Step:
    """A 16-layer Llama with AdamW on batches of any length."""
    model: Any = _model(2048, 5632, 16, 16)
    if checkpointed:
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> torch.Tensor:
        count, length = draw.choice([1, 2, 3, 4, 6]), draw.randrange(256, 3072)
        tokens = torch.randint(0, VOCABULARY, (count, length), device="cuda")
        loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
        return backward_and_step(optimizer, loss)

    return step


class _Offload:
    """Sends saved tensors to pinned host memory on one stream, and fetches them on another."""

    def __init__(self) -> None:
        self._out, self._back = torch.cuda.Stream(), torch.cuda.Stream()
        self._spare: dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]] = {}

    def pack(self, saved: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Start copying a large activation to the host; a list marks what was sent there."""
        if saved.numel() < 1 << 20 or isinstance(saved, nn.Parameter):
            return saved
        spare = self._spare.setdefault((saved.shape, saved.dtype), [])
        if spare:
            host = spare.pop()
        else:
            host = torch.empty(saved.shape, dtype=saved.dtype, pin_memory=True)
        self._out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._out):
            host.copy_(saved, non_blocking=True)
        saved.record_stream(self._out)
        return [host]

    def unpack(self, packed: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """Start fetching an activation; the current stream waits for it."""
        if isinstance(packed, torch.Tensor):
            return packed
        (host,) = packed
        self._back.wait_stream(self._out)
        with torch.cuda.stream(self._back):
            fetched = torch.empty(host.shape, dtype=host.dtype, device="cuda")
            fetched.copy_(host, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._back)
        fetched.record_stream(torch.cuda.current_stream())
        self._spare[(host.shape, host.dtype)].append(host)
        return fetched


def offload_streams(draw: random.Random) -> Step:
    """A 12-layer Llama whose saved activations wait for the backward pass in pinned memory."""
    model: Any = _model(1536, 4096, 12, 12)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    offload = _Offload()

    def step() -> torch.Tensor:
        count, length = draw.choice([1, 2, 4]), draw.randrange(512, 2048, 128)
        tokens = torch.randint(0, VOCABULARY, (count, length), device="cuda")
        with torch.autograd.graph.saved_tensors_hooks(offload.pack, offload.unpack):
            loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
        return backward_and_step(optimizer, loss)

    return step


@torch.inference_mode()
def _generate(model: Any, tokens: torch.Tensor, new_tokens: int) -> torch.Tensor:
    cache = None
    total = torch.zeros((), device="cuda")
    for _ in range(new_tokens):
        out = model.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = model.lm_head(out.last_hidden_state[:, -1])
        tokens = logits.argmax(-1, keepdim=True)
        total = total + logits.float().logsumexp(-1).mean()
    return total


def kv_generate(draw: random.Random) -> Step:
    """One stream generates for batches of any size; the caches grow by concatenation."""
    model = _model(2048, 5632, 12, 16, use_cache=True).eval()

    def step() -> torch.Tensor:
        count, length = draw.randrange(1, 17), draw.randrange(64, 1024)
        prompt = torch.randint(0, VOCABULARY, (count, length), device="cuda")
        return _generate(model, prompt, draw.randrange(8, NEW_TOKENS))

    return step


def serve_threads(draw: random.Random) -> Step:
    """Four threads, a stream each, serve requests with one model at the same time."""
    model = _model(2048, 5632, 16, 16, use_cache=True).eval()
    lanes = ThreadPoolExecutor(LANES)
    streams = [torch.cuda.Stream() for _ in range(LANES)]
    torch.cuda.synchronize()

    def serve(stream: torch.cuda.Stream, requests: list[tuple[int, int]]) -> float:
        mean = 0.0
        with torch.cuda.stream(stream):
            for count, length in requests:
                # Not torch.randint: four threads would take turns at the one device generator.
                prompt = torch.arange(count * length, device="cuda").reshape(count, length)
                # The answer is sent to the caller, as a server does: the thread waits for it.
                mean += _generate(model, prompt % VOCABULARY, NEW_TOKENS).item()
        return mean / len(requests)

    def step() -> torch.Tensor:
        requests = [
            [(draw.randrange(1, 9), draw.randrange(128, 2048)) for _ in range(REQUESTS_A_LANE)]
            for _ in range(LANES)
        ]
        return torch.tensor(sum(lanes.map(serve, streams, requests)))

    return step
