"""Tables as flat tensors, for state dicts, pickles and incremental dumps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, TableFullError
from vramkit.nn._embedding._config import TableConfig
from vramkit.nn._embedding._table import Table
from vramkit.units import counted

# Rows that are converted at once.
_CHUNK = 1 << 16
_STATE_NAMES = {
    "sgd": (),
    "adagrad": ("sum",),
    "rowwise_adagrad": ("sum",),
    "adam": ("exp_avg", "exp_avg_sq"),
}
_ALWAYS = ("keys", "rows", "stamps", "counters", "init_std")


def names_of(config: TableConfig) -> list[str]:
    """Return the names of the tensors in a table's state."""
    scales = ["scales"] if config.dtype is torch.int8 else []
    return [*_ALWAYS, *scales, *_STATE_NAMES[config.optimizer]]


def state_of(table: Table, since: int = -1) -> dict[str, Tensor]:
    """Return the rows changed after a clock, and what is needed to continue."""
    facts, config = table.facts(), table.config
    keys, rows, headers, state, stamps = table.dump(since)
    found = {
        "keys": keys,
        "rows": rows,
        "stamps": stamps,
        "counters": torch.tensor([facts.steps, facts.clock, config.seed], device="cpu"),
        "init_std": torch.tensor(config.init_std, dtype=torch.float64, device="cpu"),
    }
    if config.dtype is torch.int8:
        found["scales"] = headers[:, 0].contiguous()
    if config.optimizer == "rowwise_adagrad":
        found["sum"] = headers[:, 1].contiguous()
    elif config.optimizer == "adagrad":
        found["sum"] = state
    elif config.optimizer == "adam":
        found["exp_avg"] = state[:, : config.dim].contiguous()
        found["exp_avg_sq"] = state[:, config.dim :].contiguous()
    return found


def fill(table: Table, state: Mapping[str, Tensor]) -> None:
    """Store the rows of :func:`state_of` in a table, whose row type and budget may be others.

    Raises:
        InvalidArgumentError: Tensors are missing, or their shapes do not fit.
        TableFullError: The budget holds fewer rows, and the table does not evict.
    """
    check_state(table.config, state)
    chosen = _that_fit(table, state)
    for part in chosen.split(_CHUNK):
        _load_part(table, state, part)
    table.resume(*state["counters"][:2].tolist())


def mark_of(since: int | Mapping[str, Tensor]) -> int:
    """Return the clock of a dump, or a mark that is one.

    Raises:
        ArgumentTypeError: It is neither.
        InvalidArgumentError: The dump has no counters, or the mark is below -1.
    """
    if isinstance(since, Mapping):
        if "counters" not in since:
            raise InvalidArgumentError(
                f"since is a dump without 'counters'; it has {sorted(since)}; pass what changes() "
                "or state_dict() of the table itself returned"
            )
        return int(since["counters"][1])
    if type(since) is not int:
        raise ArgumentTypeError(
            f"since must be an earlier dump or int(dump['counters'][1]), got {type(since).__name__}"
        )
    if since < -1:
        raise InvalidArgumentError(
            f"since must be an earlier dump, its mark, or -1 for all rows, got {since}"
        )
    return since


def check_state(config: TableConfig, state: Mapping[str, Tensor]) -> None:
    """Raise an error if tensors are missing, or their shapes do not fit a table.

    Raises:
        InvalidArgumentError: This is so.
    """
    needed = {*_ALWAYS, *_STATE_NAMES[config.optimizer]}
    if "rows" in state and state["rows"].dtype is torch.int8:
        needed.add("scales")
    missing = sorted(needed - set(state))
    if missing:
        raise InvalidArgumentError(
            f"the state has no {', '.join(missing)}, which optimizer={config.optimizer!r} needs; "
            f"it has {sorted(state)}"
        )
    keys, rows = state["keys"], state["rows"]
    wide = () if config.optimizer == "rowwise_adagrad" else (config.dim,)
    shapes = {"rows": (config.dim,), "stamps": (3,), "scales": ()}
    shapes |= dict.fromkeys(_STATE_NAMES[config.optimizer], wide)
    for name, shape in shapes.items():
        if name in needed and state[name].shape != (len(keys), *shape):
            raise InvalidArgumentError(
                f"{name} has shape {tuple(state[name].shape)}; {counted(len(keys), 'key')} and "
                f"embedding_dim={config.dim} need {(len(keys), *shape)}"
            )
    if keys.unique().numel() != keys.numel():
        raise InvalidArgumentError("keys has the same key twice: the state is damaged")
    if not rows.is_floating_point() and rows.dtype is not torch.int8:
        raise InvalidArgumentError(f"rows has dtype {rows.dtype}, which no table has")


def _that_fit(table: Table, state: Mapping[str, Tensor]) -> Tensor:
    """Return the positions of the rows to load, an evicting table takes the best."""
    count, capacity = len(state["keys"]), table.facts().capacity
    # A fixed table refuses the keys that it has not.
    if not table.config.is_bounded or count <= capacity:
        return torch.arange(count, device="cpu")
    if table.config.when_full == "error":
        raise TableFullError(
            f"the state has {counted(count, 'row')}, the budget of {table.config.budget_bytes:,} "
            f"bytes holds {capacity:,}; raise budget, or choose when_full='evict_lru'"
        )
    by = 2 if table.config.when_full == "evict_lfu" else 1
    order = state["stamps"][:, by].cpu().argsort(descending=True, stable=True)
    return order[:capacity].sort().values


def _load_part(table: Table, state: Mapping[str, Tensor], part: Tensor) -> None:
    config = table.config
    rows = state["rows"][part].float()
    if state["rows"].dtype is torch.int8:
        rows *= state["scales"][part, None]
    headers = rows.new_zeros(len(part), 2)
    if config.dtype is torch.int8:
        same = state["rows"].dtype is torch.int8
        headers[:, 0] = state["scales"][part] if same else rows.abs().amax(1) / 127.0
    if config.optimizer == "rowwise_adagrad":
        headers[:, 1] = state["sum"][part]
    wide = [state[name][part].float() for name in _STATE_NAMES[config.optimizer]]
    per_row = config.optimizer == "rowwise_adagrad" or not wide
    loaded = rows.new_empty(0) if per_row else torch.cat(wide, 1).contiguous()
    table.load(state["keys"][part], rows, headers, loaded, state["stamps"][part].int())


def load_weight(table: Table, weight: Tensor) -> None:
    """Store every row of a plain weight, with fresh optimizer state.

    Raises:
        InvalidArgumentError: The shape does not fit.
        TableFullError: The budget holds fewer rows.
    """
    config = table.config
    wanted = (config.rows if config.rows is not None else len(weight), config.dim)
    if tuple(weight.shape) != wanted:
        raise InvalidArgumentError(f"weight has shape {tuple(weight.shape)}, expected {wanted}")
    capacity = table.facts().capacity
    if 0 <= capacity < len(weight):
        raise TableFullError(
            f"the weight has {counted(len(weight), 'row')}, the budget of "
            f"{config.budget_bytes:,} bytes holds {capacity:,}; raise budget"
        )
    nothing = weight.new_empty(0)
    for begin in range(0, len(weight), _CHUNK):
        rows = weight[begin : begin + _CHUNK].detach().float().contiguous()
        keys = torch.arange(begin, begin + len(rows), device=rows.device)
        headers = rows.new_full((len(rows), 2), config.initial_accumulator_value)
        headers[:, 0] = rows.abs().amax(1) / 127.0
        table.load(keys, rows, headers, nothing, nothing)
