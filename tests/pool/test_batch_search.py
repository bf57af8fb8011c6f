"""Programs that look for a batch size that fits must recognise a full pool as out of memory."""

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from helpers.pools import MIB

from vramkit import MemoryPool

FITS = 4  # of batches that take 8 MiB an item


def _module(name: str) -> ModuleType:
    """Import a library that need not be installed."""
    return pytest.importorskip(name, exc_type=ImportError)


def _shortage() -> torch.OutOfMemoryError:
    with MemoryPool("38MiB", device="cpu"), pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(64 * MIB, dtype=torch.uint8)
    return caught.value


def _step(batch_size: int) -> int:
    """Take memory by the batch size, as a training step does."""
    torch.empty(batch_size * 8 * MIB, dtype=torch.uint8)
    return batch_size


def test_the_error_has_what_they_look_for() -> None:
    """Lightning and accelerate ask for a RuntimeError with one argument that has these words."""
    error = _shortage()
    assert isinstance(error, RuntimeError)
    assert isinstance(error, torch.cuda.OutOfMemoryError)  # torch-max-mem asks for this type
    assert len(error.args) == 1
    assert error.args[0].startswith("DefaultCPUAllocator: can't allocate memory. vramkit pool on")
    assert "out of memory" in error.args[0]


def test_pytorch_uses_these_words_still() -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_a_search_of_ones_own_finds_the_size() -> None:
    batch_size = 64
    with MemoryPool("38MiB", device="cpu"):
        while True:
            try:
                _step(batch_size)
                break
            except RuntimeError as err:
                if "DefaultCPUAllocator: can't allocate memory" not in err.args[0]:
                    raise
                batch_size //= 2
    assert batch_size == FITS


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_knows_it(name: str) -> None:
    memory = _module(f"{name}.utilities.memory")
    assert memory.is_oom_error(_shortage())
    assert memory.is_out_of_cpu_memory(_shortage())


@pytest.mark.filterwarnings("ignore")  # of a library that newer releases of torch make warn
def test_lightning_finds_the_size(tmp_path: object) -> None:
    lightning = _module("lightning.pytorch")

    class Model(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            _step(len(batch[0]))
            return self.layer(batch[0]).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def train_dataloader(self) -> torch.utils.data.DataLoader[tuple[torch.Tensor, ...]]:
            data = torch.utils.data.TensorDataset(torch.ones(256, 1))
            return torch.utils.data.DataLoader(data, batch_size=self.batch_size)

    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    tuner = importlib.import_module("lightning.pytorch.tuner").Tuner(trainer)
    with MemoryPool("38MiB", device="cpu"):
        found = tuner.scale_batch_size(model, mode="power", init_val=1, max_trials=8)
    assert found == FITS


def test_accelerate_finds_the_size() -> None:
    memory = _module("accelerate.utils.memory")
    search: Callable[..., Callable[[], int]] = memory.find_executable_batch_size
    tried = []

    def work(batch_size: int) -> int:
        tried.append(batch_size)
        return _step(batch_size)

    with MemoryPool("38MiB", device="cpu"):
        found = search(work, starting_batch_size=64)()
    assert memory.should_reduce_batch_size(_shortage())
    assert found == FITS < tried[-2]


def test_torch_max_mem_finds_the_size() -> None:
    max_mem = _module("torch_max_mem")
    search = max_mem.maximize_memory_utilization(parameter_name="batch_size")
    with MemoryPool("38MiB", device="cpu"):
        assert search(_step)(batch_size=64) == FITS
