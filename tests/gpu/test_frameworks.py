"""Lightning, the Hugging Face Trainer and Accelerate train inside a pool as they do outside."""

import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.gpu import clean
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vramkit import MemoryPool

_MIB = 1 << 20


def _data(count: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 256, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


def _net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 2))


def _weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().flatten().cpu() for each in net.parameters()])


def _with_lightning() -> torch.Tensor:
    lightning: Any = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    module = Module()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="gpu",
            devices=1,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(_data(), batch_size=16))
    return _weights(module)


def _with_hf_trainer() -> torch.Tensor:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        vocab_size=100,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 100, (32, 16), generator=generator)
    rows = [{"input_ids": row, "labels": int(row.sum()) % 2} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=8,
            num_train_epochs=2,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=True,
            seed=1,
        )
        transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
    return _weights(model)


def _with_accelerate() -> torch.Tensor:
    accelerate: Any = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
    net = _net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(
        net, optimizer, DataLoader(_data(), batch_size=16)
    )
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    return _weights(net)


@pytest.mark.parametrize("train", [_with_lightning, _with_hf_trainer, _with_accelerate])
def test_a_framework_trains_the_same_weights(train: Callable[[], torch.Tensor]) -> None:
    outside = train()
    clean()
    pool = MemoryPool("1GiB", device="cuda")
    with pool:
        inside = train()
    assert torch.equal(inside, outside)
    assert pool.stats().allocations > 50
    pool._core.check()


def _batch_bytes(rows: int) -> torch.Tensor:
    return torch.empty(rows, _MIB, dtype=torch.uint8, device="cuda")


def test_accelerate_finds_a_batch_size_that_fits() -> None:
    memory: Any = pytest.importorskip("accelerate.utils.memory")
    tried: list[int] = []

    @memory.find_executable_batch_size(starting_batch_size=128)  # type: ignore[misc]
    def work(batch_size: int) -> int:
        tried.append(batch_size)
        _batch_bytes(batch_size)
        return batch_size

    with MemoryPool("64MiB", device="cuda"):
        found = work()
    assert tried[0] == 128
    assert 32 <= found <= 64


def test_lightning_recognises_a_full_pool() -> None:
    memory: Any = pytest.importorskip("lightning.pytorch.utilities.memory")
    with MemoryPool("64MiB", device="cuda"), pytest.raises(torch.OutOfMemoryError) as raised:
        _batch_bytes(128)
    assert memory.is_oom_error(raised.value)
