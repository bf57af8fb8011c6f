"""Lightning, Accelerate and the Hugging Face Trainer train the same with the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset

import vramkit

WAYS = [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.parametrize("options", WAYS, ids=["inline", "workers", "persistent"]),
]


class Rows(Dataset[Any]):
    """Random vectors and their sums."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        row = torch.randn(700, generator=torch.Generator().manual_seed(index))
        return {"x": row, "labels": row.sum()}


class Regression(nn.Module):
    """A linear model that remembers its losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(700, 1)
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = ((self.layer(x)[:, 0] - labels) ** 2).mean()
        self.losses.append(loss.item())
        return {"loss": loss}


def make_loader(kind: Any, options: dict[str, Any]) -> Any:
    return kind(Rows(), 16, shuffle=True, **options)


def test_lightning(options: dict[str, Any], tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-4)

    def train(kind: Any) -> list[float]:
        module = Module()
        torch.manual_seed(3)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, make_loader(kind, options))
        return module.model.losses

    losses = train(vramkit.DataLoader)
    assert len(losses) == 12
    assert losses == train(TorchDataLoader)


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "bare"])
def test_accelerate(options: dict[str, Any], prepared: bool) -> None:
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)

    def train(kind: Any) -> list[float]:
        model = Regression()
        torch.manual_seed(3)
        accelerator = accelerate.Accelerator(cpu=True)
        loader = make_loader(kind, options)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        model, optimizer = accelerator.prepare(model, optimizer)
        if prepared:
            loader = accelerator.prepare(loader)
        for _ in range(2):
            for batch in loader:
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
        return model.losses

    losses = train(vramkit.DataLoader)
    assert len(losses) == 12
    assert losses == train(TorchDataLoader)


def test_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("accelerate", exc_type=ImportError)

    def train(kind: Any) -> list[float]:
        class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
            def get_train_dataloader(self) -> Any:
                return make_loader(kind, options)

        model = Regression()
        torch.manual_seed(3)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=Rows()).train()
        return model.losses

    losses = train(vramkit.DataLoader)
    assert len(losses) == 12
    assert losses == train(TorchDataLoader)
