"""What a table is built with, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal, SupportsIndex, TypedDict

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, UnsupportedDeviceError
from vramkit.units import parse_bytes

OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
Placement = Literal["device", "cached", "host"]
WhenFull = Literal["grow", "error", "evict_lru", "evict_lfu", "spill"]

# In the order of the enumerations in csrc/ops/embedding/.
ROW_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam")
_WHEN_FULL = ("grow", "error", "evict_lru", "evict_lfu", "spill")
_PLACEMENTS = ("device", "host", "cached")
# Ids are int64; a row's bytes and offsets are 32-bit integers in native code.
_MOST_ROWS = (1 << 63) - 1
_MOST_VALUES = 1 << 24
_DEFAULT_RATES = {"sgd": 1e-3, "adagrad": 1e-2, "rowwise_adagrad": 1e-2, "adam": 1e-3}
_OWN = {
    "sgd": {"lr"},
    "adagrad": {"lr", "lr_decay", "initial_accumulator_value", "eps"},
    "rowwise_adagrad": {"lr", "lr_decay", "initial_accumulator_value", "eps"},
    "adam": {"lr", "betas", "eps"},
}
_OF_OPTIMIZERS = set().union(*_OWN.values())


class TableOptions(TypedDict, total=False):
    """The keyword-only arguments of the embedding modules besides torch's own."""

    optimizer: OptimizerName | None
    lr: float
    betas: tuple[float, float]
    eps: float
    lr_decay: float
    initial_accumulator_value: float
    placement: Placement
    budget: int | str | None
    when_full: WhenFull
    seed: int
    init_std: float


@dataclass(frozen=True)
class TableConfig:
    """A table with a fused optimizer. ``rows`` is None for an open id space."""

    rows: int | None
    dim: int
    dtype: torch.dtype
    optimizer: str
    output_dtype: torch.dtype
    device: torch.device
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-10
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    budget_bytes: int = 0
    when_full: str = "grow"
    placement: str = "device"
    padding: int | None = None
    seed: int = 0
    init_std: float = 1.0

    def native(self) -> tuple[list[int], list[float]]:
        """Return what ``table_create`` takes."""
        return [
            ROW_TYPES.index(self.dtype),
            OPTIMIZERS.index(self.optimizer),
            self.dim,
            -1 if self.rows is None else self.rows,
            self.budget_bytes,
            _WHEN_FULL.index(self.when_full),
            self.seed,
            self.padding is not None,
            self.padding or 0,
            _PLACEMENTS.index(self.placement),
        ], [self.init_std, self.initial_accumulator_value]

    @property
    def is_bounded(self) -> bool:
        """Whether the budget limits the rows of the table, rather than those on a GPU."""
        return self.budget_bytes > 0 and self.placement != "cached" and self.when_full != "spill"

    @property
    def evicts(self) -> bool:
        """Whether rows may be given up for others."""
        return self.when_full.startswith("evict")

    def of_dtype(self, dtype: torch.dtype) -> TableConfig:
        """Return the config after ``module.to(dtype)``: int8 rows stay, their output follows."""
        if dtype not in ROW_TYPES[:3]:
            raise InvalidArgumentError(
                f"a table with optimizer={self.optimizer!r} has rows and outputs of float32, "
                f"bfloat16 or float16; it cannot be converted to {dtype}"
            )
        kept = self.dtype if self.dtype is torch.int8 else dtype
        return replace(self, dtype=kept, output_dtype=dtype)


def check_options(options: TableOptions) -> None:
    """Raise an error for names that no embedding module takes."""
    unknown = set(options) - set(TableOptions.__annotations__)
    if unknown:
        raise ArgumentTypeError(
            f"unexpected arguments {sorted(unknown)}; vramkit's own are "
            f"{sorted(TableOptions.__annotations__)}"
        )


def check_plain(options: TableOptions, dtype: torch.dtype | None) -> None:
    """Check the options of a module without a fused optimizer, which has a ``weight``."""
    given = sorted(name for name, value in options.items() if value is not None)
    unused = [name for name in given if name not in ("optimizer", "placement")]
    if unused:
        raise InvalidArgumentError(
            f"{', '.join(unused)}: only tables with a fused optimizer take these; pass "
            f"optimizer='adam' or one of {list(OPTIMIZERS)}"
        )
    if dtype is torch.int8:
        raise InvalidArgumentError(
            "dtype=torch.int8 needs a fused optimizer: a Parameter of integers has no gradient; "
            f"pass optimizer= one of {list(OPTIMIZERS)}"
        )
    placement = _placement(options)
    if placement != "device":
        raise InvalidArgumentError(
            f"placement={placement!r}: only tables with a fused optimizer take it, as other "
            f"optimizers need the whole weight where they run; pass optimizer='adam' or one of "
            f"{list(OPTIMIZERS)}"
        )


def table_config(
    rows: int | None,
    dim: int,
    dtype: torch.dtype | None,
    padding: int | None,
    device: Any,
    options: TableOptions,
) -> tuple[TableConfig, float]:
    """Check the arguments of a table with a fused optimizer; also return its learning rate."""
    optimizer = options.get("optimizer")
    if optimizer not in OPTIMIZERS:
        raise InvalidArgumentError(
            f"optimizer must be None or one of {list(OPTIMIZERS)}, got {optimizer!r}"
        )
    place = table_device(torch.get_default_device() if device is None else torch.device(device))
    if rows is not None:
        rows = whole_number("num_embeddings", rows, 1, _MOST_ROWS)
    dim = whole_number("embedding_dim", dim, 1, _MOST_VALUES)
    kind = torch.get_default_dtype() if dtype is None else dtype
    if kind not in ROW_TYPES:
        raise InvalidArgumentError(
            f"dtype must be float32, bfloat16, float16 or int8 for a fused table, got {kind!r}"
        )
    config = TableConfig(
        rows=rows,
        dim=dim,
        dtype=kind,
        optimizer=optimizer,
        output_dtype=torch.float32 if kind is torch.int8 else kind,
        device=place,
        padding=padding,
        seed=_seed(options),
        init_std=number("init_std", options.get("init_std", 1.0)),
        **_rule(optimizer, options),
        **_budget(options),
    )
    return config, number("lr", options.get("lr", _DEFAULT_RATES[optimizer]))


def _rule(optimizer: str, options: TableOptions) -> dict[str, Any]:
    foreign = sorted((set(options) & _OF_OPTIMIZERS) - _OWN[optimizer])
    if foreign:
        raise InvalidArgumentError(
            f"optimizer={optimizer!r} takes {sorted(_OWN[optimizer])}, got {foreign}"
        )
    betas = options.get("betas", (0.9, 0.999))
    if not isinstance(betas, Sequence):
        raise ArgumentTypeError(f"betas must be two numbers in [0, 1), got {betas!r}")
    if len(betas) != 2 or not all(0.0 <= as_float("betas", beta) < 1.0 for beta in betas):
        raise InvalidArgumentError(f"betas must be two numbers in [0, 1), got {betas!r}")
    eps = options.get("eps", 1e-8 if optimizer == "adam" else 1e-10)
    accumulated = options.get("initial_accumulator_value", 0.0)
    return {
        "betas": (float(betas[0]), float(betas[1])),
        "eps": number("eps", eps),
        "lr_decay": number("lr_decay", options.get("lr_decay", 0.0)),
        "initial_accumulator_value": number("initial_accumulator_value", accumulated),
    }


def _budget(options: TableOptions) -> dict[str, Any]:
    budget, placement = options.get("budget"), _placement(options)
    keeps = budget is None or placement == "cached"
    when_full = options.get("when_full", "grow" if keeps else "error")
    if when_full not in _WHEN_FULL:
        raise InvalidArgumentError(
            f"when_full must be one of {list(_WHEN_FULL)}, got {when_full!r}"
        )
    if placement == "cached":
        _check_cached(budget, when_full)
    elif (budget is None) != (when_full == "grow"):
        raise InvalidArgumentError(
            f"when_full={when_full!r} with budget={budget!r}: a table grows without a budget; "
            "with one, choose 'error', 'evict_lru', 'evict_lfu' or 'spill'"
        )
    if placement == "host" and when_full == "spill":
        raise InvalidArgumentError(
            "when_full='spill' with placement='host': the rows are in host memory already; leave "
            "out budget and when_full, or choose 'error', 'evict_lru' or 'evict_lfu'"
        )
    size = 0 if budget is None else parse_bytes(budget, name="budget")
    if size >= 1 << 63:
        raise InvalidArgumentError(f"budget must be less than 2**63 bytes, got {budget!r}")
    return {"budget_bytes": size, "when_full": when_full, "placement": placement}


def _check_cached(budget: int | str | None, when_full: str) -> None:
    if budget is None:
        raise InvalidArgumentError(
            "placement='cached' needs a budget: the GPU memory for the rows used last, such as "
            "budget='4GiB'"
        )
    if when_full != "grow":
        raise InvalidArgumentError(
            f"when_full={when_full!r} with placement='cached': rows that the budget has no room "
            "for stay in host memory, and none is lost; leave when_full out"
        )


def _seed(options: TableOptions) -> int:
    seed = options.get("seed")
    if seed is None:
        return drawn_seed()
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise InvalidArgumentError(f"seed must be an integer in [0, 2**63), got {seed!r}")
    return seed


def drawn_seed() -> int:
    """Draw a seed from PyTorch's generator, whatever the default device is."""
    return int(torch.randint(1 << 62, (), device="cpu"))


def as_float(name: str, value: Any) -> float:
    """Return a number as a float.

    Raises:
        ArgumentTypeError: It is no number.
    """
    try:
        if not isinstance(value, str | bytes | bytearray | bool):  # which float() takes too
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ArgumentTypeError(f"{name} must be a number, got {value!r}")


def number(name: str, value: Any) -> float:
    """Return a finite number that is not negative, or raise an error."""
    result = as_float(name, value)
    if not 0.0 <= result < math.inf:
        raise InvalidArgumentError(f"{name} must be finite and not negative, got {result}")
    return result


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """Return an integer between two others, or raise an error."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ArgumentTypeError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}"
        )
    result = index(value)
    if not least <= result <= most:
        raise InvalidArgumentError(f"{name} must be from {least:,} to {most:,}, got {result:,}")
    return result


def check_norm(limit: tuple[float | None, float]) -> None:
    """Raise an error for a ``max_norm`` and a ``norm_type`` that a fused table cannot honour."""
    most, degree = limit
    if most is not None and not most > 0.0:
        raise InvalidArgumentError(
            f"max_norm must be positive for a table with a fused optimizer, got {most}; leave it "
            "out for rows of any norm"
        )
    if most is not None and not degree > 0.0:
        raise InvalidArgumentError(
            f"norm_type must be positive for a table with a fused optimizer, got {degree}"
        )


def check_rate(value: Any) -> float:
    """Return a learning rate, or raise an error."""
    return number("lr", value)


def _placement(options: TableOptions) -> Placement:
    placement = options.get("placement", "device")
    if placement not in _PLACEMENTS:
        raise InvalidArgumentError(
            f"placement must be one of {list(_PLACEMENTS)}, got {placement!r}"
        )
    return placement


def table_device(device: torch.device) -> torch.device:
    """Return the device with its index.

    Raises:
        UnsupportedDeviceError: No table can be there.
    """
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UnsupportedDeviceError(
            f"tables with a fused optimizer are on the CPU or on CUDA devices, not on {device}; "
            "pass device='cpu', or optimizer=None for a plain weight"
        )
    if not torch.cuda.is_available():
        raise UnsupportedDeviceError(f"no table on {device}: PyTorch finds no CUDA device")
    if not _has_cuda_tables() and not _makes_fakes():
        raise UnsupportedDeviceError(
            f"no table on {device}: vramkit was built without CUDA; build it where nvcc is, or "
            "keep the table on the CPU"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)


def padding_of(padding_idx: int | None, rows: int | None) -> int | None:
    """Return the padding id, not negative in a fixed table, or raise an error."""
    if padding_idx is None:
        return None
    padding_idx = whole_number("padding_idx", padding_idx, -(1 << 63), (1 << 63) - 1)
    if rows is None:
        return padding_idx
    if not -rows <= padding_idx < rows:
        raise InvalidArgumentError(
            f"padding_idx must be within num_embeddings={rows}, got {padding_idx}"
        )
    return padding_idx % rows


def _has_cuda_tables() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("vramkit::table_create", "CUDA")


def _makes_fakes() -> bool:
    """Tell whether tensors have no data: the device is a pretended one, as in an estimate."""
    modes = _get_current_dispatch_mode_stack()
    return any(isinstance(mode, FakeTensorMode) for mode in modes)
