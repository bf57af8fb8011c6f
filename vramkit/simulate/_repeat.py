"""Repeats one step of a trace so that every round is the same.

A step frees blocks that stood before it and leaves others behind. From the second round on it
frees what the round before left: blocks are paired by size and stream, in order. What finds no
partner is put right at the end of each round: blocks that the step left and will not free again
are freed, blocks that it will free again are allocated. So each round begins with the same live
bytes and has the same peak, and the rounds differ in nothing but the place of the blocks.
"""

from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vramkit._core import ReplayOp
from vramkit.errors import InvalidArgumentError
from vramkit.simulate._events import Events, Int64
from vramkit.simulate._steps import Step
from vramkit.units import counted

# Some 3 GiB of arrays while they are made.
_MAX_EVENTS = 1 << 26


@dataclass(frozen=True)
class Repetition:
    """A trace up to a step, then that step many times.

    Attributes:
        events: The events to replay.
        step: The step, in events of the trace that it comes from.
        round_starts: First event of each round in ``events``.
    """

    events: Events
    step: Step
    round_starts: tuple[int, ...]


@dataclass(frozen=True)
class _Round:
    """The events of one round.

    Attributes:
        local_id: Number of the event's block among those that a round allocates. At a free of
            an older block, the number it has in the round before.
        first_id: At a free of an older block, the block that the first round frees; else -1.
        block_count: Blocks that a round allocates.
    """

    op: NDArray[np.uint8]
    size_bytes: Int64
    stream: NDArray[np.int32]
    index: Int64
    local_id: Int64
    first_id: Int64
    block_count: int


def repeat_step(events: Events, step: Step, *, rounds: int) -> Repetition:
    """Build the events up to ``step`` and then ``rounds`` times the step.

    Raises:
        InvalidArgumentError: ``rounds`` is below one or makes too many events.
    """
    count = step.start + max(rounds, 0) * (step.stop - step.start)
    if rounds < 1 or count > _MAX_EVENTS:
        raise InvalidArgumentError(
            f"the step of {counted(step.stop - step.start, 'event')} can be repeated 1 to "
            f"{(_MAX_EVENTS - step.start) // (step.stop - step.start)} times, not {rounds:,}"
        )
    base = int((events.op[: step.start] == ReplayOp.ALLOC).sum())
    one = _make_round(events, step, base)
    head = slice(0, step.start)
    ids = [_ids_of_round(one, base, number) for number in range(rounds)]
    repeated = Events(
        op=np.concatenate([events.op[head], *[one.op] * rounds]),
        block_id=np.concatenate([events.block_id[head], *ids]),
        size_bytes=np.concatenate([events.size_bytes[head], *[one.size_bytes] * rounds]),
        stream=np.concatenate([events.stream[head], *[one.stream] * rounds]),
        index=np.concatenate([events.index[head], *[one.index] * rounds]),
        block_count=base + rounds * one.block_count,
        standing_blocks=events.standing_blocks,
    )
    starts = tuple(step.start + number * len(one.op) for number in range(rounds))
    return Repetition(events=repeated, step=step, round_starts=starts)


def _ids_of_round(one: _Round, base: int, number: int) -> Int64:
    own = base + number * one.block_count + one.local_id
    inherited = one.first_id if number == 0 else own - one.block_count
    return np.where(one.first_id >= 0, inherited, own)


def _make_round(events: Events, step: Step, base: int) -> _Round:
    inside = slice(step.start, step.stop)
    op, block_id = events.op[inside], events.block_id[inside]
    own_count = int((op == ReplayOp.ALLOC).sum())
    older = block_id < base
    left = np.setdiff1d(
        np.arange(base, base + own_count), block_id[op == ReplayOp.FREE], assume_unique=True
    )
    pairs = _pair_up(events, block_id[older], left)
    missing = [block for block in block_id[older].tolist() if block not in pairs]
    surplus = np.setdiff1d(left, list(pairs.values()), assume_unique=True)
    # Ids of a round: the step's own blocks, then those allocated at its end.
    local = {block: partner - base for block, partner in pairs.items()}
    local |= {block: own_count + number for number, block in enumerate(missing)}
    local_id = block_id - base
    local_id[older] = [local[block] for block in block_id[older].tolist()]
    mended = np.concatenate([surplus, np.array(missing, dtype=np.int64)])
    size_of, stream_of = _block_columns(events)
    return _Round(
        op=np.concatenate([op, _ops(len(surplus), ReplayOp.FREE), _ops(len(missing))]),
        size_bytes=np.concatenate([events.size_bytes[inside], size_of[mended]]),
        stream=np.concatenate([events.stream[inside], stream_of[mended]]),
        index=np.concatenate([events.index[inside], np.full(len(mended), -1)]),
        local_id=np.concatenate([local_id, surplus - base, own_count + np.arange(len(missing))]),
        first_id=np.concatenate([np.where(older, block_id, -1), np.full(len(mended), -1)]),
        block_count=own_count + len(missing),
    )


def _ops(count: int, op: ReplayOp = ReplayOp.ALLOC) -> NDArray[np.uint8]:
    return np.full(count, op, dtype=np.uint8)


def _block_columns(events: Events) -> tuple[Int64, NDArray[np.int32]]:
    """Size and stream of each block: ids number the allocations in order."""
    is_alloc = events.op == ReplayOp.ALLOC
    return events.size_bytes[is_alloc], events.stream[is_alloc]


def _pair_up(events: Events, older: Int64, left: Int64) -> dict[int, int]:
    """For each older block that a step frees, a block of like size and stream that it leaves."""
    size_of, stream_of = _block_columns(events)

    def kind(block: int) -> tuple[int, int]:
        return int(size_of[block]), int(stream_of[block])

    waiting: dict[tuple[int, int], deque[int]] = defaultdict(deque)
    for block in left.tolist():
        waiting[kind(block)].append(block)
    pairs: dict[int, int] = {}
    for block in older.tolist():
        if queue := waiting[kind(block)]:
            pairs[block] = queue.popleft()
    return pairs
