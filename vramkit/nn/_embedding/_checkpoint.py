"""Tables as flat tensors, for state dicts, pickles and incremental dumps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, TableFullError
from vramkit.nn._embedding._config import TableConfig
from vramkit.nn._embedding._history import check_follows
from vramkit.nn._embedding._input import check_tensor
from vramkit.nn._embedding._table import Dump, Table
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
# What a state dict may have for a table, besides others' names.
KNOWN_NAMES = {"weight", *_ALWAYS, "history", "scales", "sum", "exp_avg", "exp_avg_sq"}
# Stamps and the clock are unsigned integers of 32 bits.
_LAST_CLOCK = (1 << 32) - 1


def names_of(config: TableConfig) -> list[str]:
    """Return the names of the tensors in a table's state."""
    scales = ["scales"] if config.dtype is torch.int8 else []
    return [*_ALWAYS, *scales, *_STATE_NAMES[config.optimizer]]


def state_of(table: Table) -> dict[str, Tensor]:
    """Return all rows, and what is needed to continue."""
    return _state(table, table.dump())


def changes_of(table: Table, since: int) -> dict[str, Tensor]:
    """Return the rows changed after a clock, that clock, and the keys of all rows.

    Raises:
        InvalidArgumentError: The table has not reached this clock.
    """
    dump = table.dump(since, with_present=True)
    reached = int(dump.counters[1])
    if since > reached:
        raise InvalidArgumentError(
            f"since is the mark {since:,}, and the table is at {reached:,}: the mark is of another "
            "table, or of a later state of this one; take a dump of all rows, changes()"
        )
    marks = {"present": dump.present, "since": torch.tensor(since, device="cpu")}
    return _state(table, dump) | marks


def _state(table: Table, dump: Dump) -> dict[str, Tensor]:
    config, headers, state = table.config, dump.headers, dump.state
    found = {
        "keys": dump.keys,
        "rows": dump.rows,
        "stamps": dump.stamps,
        "counters": torch.cat([dump.counters, torch.tensor([config.seed], device="cpu")]),
        "init_std": torch.tensor(config.init_std, dtype=torch.float64, device="cpu"),
        "history": table.history.at(int(dump.counters[1])),
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
        InvalidArgumentError: The state does not fit, as :func:`check_state` finds.
        TableFullError: The budget holds fewer rows, and the table does not evict.
    """
    check_state(table.config, state)
    chosen = _that_fit(table, state)
    for part in chosen.split(_CHUNK):
        _load_part(table, state, part)
    table.resume(*state["counters"][:2].tolist())
    table.history.follow(state.get("history"))


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
    if not -1 <= since <= _LAST_CLOCK:
        raise InvalidArgumentError(
            f"since must be an earlier dump, its mark, or -1 for all rows, got {since}; a mark is "
            f"at most {_LAST_CLOCK}"
        )
    return since


def check_state(config: TableConfig, state: Mapping[str, Tensor]) -> None:
    """Raise an error for a state that a table cannot take, or that is damaged.

    Raises:
        InvalidArgumentError: Tensors are missing, or their types, shapes or values do not fit.
    """
    needed = {*_ALWAYS, *_STATE_NAMES[config.optimizer]}
    missing = sorted(needed - set(state))
    if "rows" in state and getattr(state["rows"], "dtype", None) is torch.int8:
        needed.add("scales")
        missing = sorted(needed - set(state))
    if missing:
        raise InvalidArgumentError(
            f"the state has no {', '.join(missing)}, which optimizer={config.optimizer!r} needs; "
            f"it has {sorted(state)}"
        )
    needed |= {"history"} & set(state)
    for name in needed:
        _check_tensor(name, state[name])
    _check_shapes(config, state, needed)
    keys = state["keys"]
    if keys.unique().numel() != keys.numel():
        raise InvalidArgumentError("keys has the same key twice: the state is damaged")
    _check_counters(state)


def _check_tensor(name: str, value: Any) -> None:
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    if not dense or value.device.type == "meta":
        what = f"{value.layout} on {value.device}" if isinstance(value, Tensor) else repr(value)
        raise InvalidArgumentError(f"{name} must be a dense tensor with values, got {what}")
    integers = dict.fromkeys(("keys", "counters", "history", "present", "since"), torch.int64)
    integers["stamps"] = torch.int32
    if name in integers:
        fits = value.dtype is integers[name]
    else:
        fits = value.is_floating_point() or (name == "rows" and value.dtype is torch.int8)
    if not fits:
        raise InvalidArgumentError(f"{name} has dtype {value.dtype}, which no state has")


def _check_shapes(config: TableConfig, state: Mapping[str, Tensor], needed: set[str]) -> None:
    count = state["keys"].numel()
    wide = () if config.optimizer == "rowwise_adagrad" else (config.dim,)
    shapes: dict[str, tuple[int, ...]] = {
        "keys": (count,),
        "rows": (count, config.dim),
        "stamps": (count, 3),
        "scales": (count,),
        "counters": (3,),
        "init_std": (),
        "history": (state["history"].numel() // 2, 2) if "history" in needed else (),
    }
    shapes |= dict.fromkeys(_STATE_NAMES[config.optimizer], (count, *wide))
    for name, shape in shapes.items():
        if name in needed and tuple(state[name].shape) != shape:
            raise InvalidArgumentError(
                f"{name} has shape {tuple(state[name].shape)}; {counted(count, 'key')} and "
                f"embedding_dim={config.dim} need {shape}"
            )


def _check_counters(state: Mapping[str, Tensor]) -> None:
    steps, clock, seed = state["counters"].tolist()
    deviation = float(state["init_std"])
    if min(steps, clock, seed) < 0 or clock > _LAST_CLOCK or not 0.0 <= deviation < math.inf:
        raise InvalidArgumentError(
            f"counters has {steps} steps, the clock {clock} and the seed {seed}, init_std is "
            f"{deviation}: the state is damaged"
        )
    if state["keys"].numel() == 0:
        return
    if state["rows"].dtype is torch.int8 and bool((state["scales"] < 0).any()):
        raise InvalidArgumentError("scales has a negative number: the state is damaged")
    latest = int(_unsigned(state["stamps"][:, :2]).max())
    if latest > clock:
        raise InvalidArgumentError(
            f"stamps has a row of time {latest}, the clock is at {clock}: the state is damaged"
        )


def _unsigned(stamps: Tensor) -> Tensor:
    return stamps.long() & _LAST_CLOCK


def converted(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a state whose rows have another type, rounded to the nearest."""
    rows = state["rows"]
    if rows.dtype is dtype:
        return dict(state)
    values = rows.float()
    if rows.dtype is torch.int8:
        values *= state["scales"][:, None]
    if dtype is not torch.int8:
        return dict(state) | {"rows": values.to(dtype)}
    scales = _scales(values)
    whole = (values / scales.where(scales > 0, 1.0)[:, None]).round().clamp(-127, 127)
    return dict(state) | {"rows": whole.to(torch.int8), "scales": scales}


def _scales(rows: Tensor) -> Tensor:
    return rows.abs().amax(1) / 127.0


def with_changes(table: Table, changes: Mapping[str, Tensor]) -> Table:
    """Return a table like ``table`` that is up to date with a dump; ``table`` stays as it is.

    Raises:
        InvalidArgumentError: The dump does not fit, or does not follow the table's state.
    """
    missing = [name for name in ("present", "since") if name not in changes]
    if missing:
        raise InvalidArgumentError(
            f"the dump has no {' and no '.join(missing)}; take it with changes()"
        )
    check_state(table.config, changes)
    _check_marks(changes)
    _check_order(int(changes["since"]), int(changes["counters"][1]), table.facts().clock)
    state = state_of(table)
    if int(changes["since"]) >= 0:
        check_follows(changes, state)
    here = state["keys"].device
    changes = {name: value.to(here) for name, value in changes.items()}
    changes = converted(changes, table.config.dtype)
    present, fresh = changes["present"], changes["keys"]
    kept = torch.isin(state["keys"], present) & ~torch.isin(state["keys"], fresh)
    merged = dict(changes)
    for name in names_of(table.config):
        if name not in ("counters", "init_std"):
            merged[name] = torch.cat([state[name][kept], changes[name]])
    if len(merged["keys"]) != len(present):
        raise InvalidArgumentError(
            f"the dump belongs to a table of {len(present):,} rows, this table would have "
            f"{len(merged['keys']):,}; apply the dumps in their order, from the first"
        )
    return filled(table, merged)


def _check_marks(changes: Mapping[str, Tensor]) -> None:
    """Raise an error where what a dump has besides a state is damaged."""
    for name, dims in (("present", 1), ("since", 0)):
        _check_tensor(name, changes[name])
        shape = tuple(changes[name].shape)
        if len(shape) != dims:
            raise InvalidArgumentError(
                f"{name} has shape {shape}, expected {counted(dims, 'dimension')}"
            )
    if not bool(torch.isin(changes["keys"], changes["present"]).all()):
        raise InvalidArgumentError("present lacks keys of the dump's own rows: the dump is damaged")


def _check_order(since: int, until: int, clock: int) -> None:
    """Raise an error where a dump of the changes after ``since`` does not follow ``clock``."""
    if since < 0 or since <= clock <= until:
        return
    raise InvalidArgumentError(
        f"the dump has the changes from {since} to {until}, this table is at {clock}; apply the "
        "dumps in their order, from the first"
    )


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
    order = _unsigned(state["stamps"][:, by].cpu()).argsort(descending=True, stable=True)
    return order[:capacity].sort().values


def _load_part(table: Table, state: Mapping[str, Tensor], part: Tensor) -> None:
    config = table.config
    rows = state["rows"][part].float()
    if state["rows"].dtype is torch.int8:
        rows *= state["scales"][part, None]
    headers = rows.new_zeros(len(part), 2)
    if config.dtype is torch.int8:
        same = state["rows"].dtype is torch.int8
        headers[:, 0] = state["scales"][part] if same else _scales(rows)
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
    if weight.ndim != 2:
        raise InvalidArgumentError(
            f"weight has shape {tuple(weight.shape)}, expected two dimensions"
        )
    wanted = (len(weight) if config.rows is None else config.rows, config.dim)
    if tuple(weight.shape) != wanted:
        raise InvalidArgumentError(f"weight has shape {tuple(weight.shape)}, expected {wanted}")
    capacity = table.facts().capacity
    if 0 <= capacity < len(weight):
        text = (
            f"the weight has {counted(len(weight), 'row')}, the budget of "
            f"{config.budget_bytes:,} bytes holds {capacity:,}; raise budget"
        )
        if config.evicts:
            text += (
                f": no row of a plain weight has been used yet, so when_full={config.when_full!r} "
                "cannot choose the rows to keep"
            )
        raise TableFullError(text)
    nothing = weight.new_empty(0)
    for begin in range(0, len(weight), _CHUNK):
        rows = weight[begin : begin + _CHUNK].detach().float().contiguous()
        keys = torch.arange(begin, begin + len(rows), device=rows.device)
        headers = rows.new_full((len(rows), 2), config.initial_accumulator_value)
        headers[:, 0] = _scales(rows)
        table.load(keys, rows, headers, nothing, nothing)


def filled(table: Table, state: Mapping[str, Tensor]) -> Table:
    """Return a table like ``table`` that holds a state; ``table`` stays as it is."""
    if "weight" in state:
        check_tensor("weight", state["weight"])
        result = Table(table.config, table.lr)
        load_weight(result, state["weight"])
        return result
    config = table.config
    check_state(config, state)
    seed, deviation = int(state["counters"][2]), float(state["init_std"])
    config = replace(config, seed=seed, init_std=deviation)
    result = Table(config, table.lr)
    fill(result, state)
    return result
