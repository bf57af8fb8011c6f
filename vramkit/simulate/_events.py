"""Allocator events: as a trace holds them, and as the pool's replay takes them."""

import enum
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vramkit._core import ReplayOp
from vramkit.errors import TraceError
from vramkit.simulate._limits import MAX_STREAMS

Int64 = NDArray[np.int64]

# The sum of all requests stays far from 2**63, so that int64 cannot overflow on the way.
_MAX_TOTAL_BYTES = 1 << 62


class Action(enum.IntEnum):
    """The recorded events that say when a block lives."""

    ALLOC = 0
    FREE_REQUESTED = 1
    FREE_COMPLETED = 2


@dataclass(frozen=True)
class RecordedEvents:
    """Events as recorded, one array entry each, in order.

    Attributes:
        action: An :class:`Action` each.
        addr: Address; it identifies a block until the block is freed.
        size: Requested bytes.
        stream: Any number for the stream.
        index: Position in the file, for error texts.
        standing: Rows of (addr, size, stream): blocks known to be live although no event
            names them.
    """

    action: NDArray[np.uint8]
    addr: Int64
    size: Int64
    stream: Int64
    index: Int64
    standing: Int64


@dataclass(frozen=True)
class Events:
    """Allocations and frees of blocks with dense ids, ready for the pool's replay.

    Attributes:
        op: 0 allocates, 1 frees.
        block_id: Ids run from 0 to ``block_count - 1``, each allocated once.
        size_bytes: Requested bytes of the block, at its free too.
        stream: Streams numbered from 0; the block's own stream at its free too.
        index: Position of the event in the file, -1 for events that the file does not hold.
        block_count: Number of ids.
        standing_blocks: Blocks that were live before the first event; they are placed first.
        notes: What is doubtful about the recording, in sentences for people.
        private_blocks: Blocks of private pools (CUDA graphs, ``torch.cuda.MemPool``), which are
            not among the events: a vramkit pool does not serve them.
        private_peak_bytes: Most requested bytes of such blocks live at once.
    """

    op: NDArray[np.uint8]
    block_id: Int64
    size_bytes: Int64
    stream: NDArray[np.int32]
    index: Int64
    block_count: int
    standing_blocks: int
    notes: tuple[str, ...] = ()
    private_blocks: int = 0
    private_peak_bytes: int = 0

    def __len__(self) -> int:
        """Number of events."""
        return len(self.op)

    @cached_property
    def live_bytes(self) -> Int64:
        """Requested bytes live after each event."""
        return np.cumsum(np.where(self.op == ReplayOp.ALLOC, self.size_bytes, -self.size_bytes))

    @cached_property
    def peak_live_bytes(self) -> int:
        """Most requested bytes live at once."""
        return int(self.live_bytes.max(initial=0))


def normalise(recorded: RecordedEvents) -> Events:
    """Pair each free with its allocation and number blocks and streams densely.

    A block lives from ``alloc`` to ``free_completed``. One that is freed without having been
    allocated was live before recording began: it is allocated first. Blocks of zero bytes
    need no memory and are left out.

    Raises:
        TraceError: A negative size, too many streams, an address allocated while it is live, or
            freed twice.

    >>> columns = np.array([[0, 64, 100, 7, 0], [0, 96, 50, 9, 1], [2, 64, 100, 7, 2]]).T
    >>> events = normalise(RecordedEvents(columns[0].astype("u1"), *columns[1:],
    ...                                   standing=np.empty((0, 3), dtype=np.int64)))
    >>> events.op.tolist(), events.block_id.tolist(), events.stream.tolist()
    ([0, 0, 1], [0, 1, 0], [0, 1, 0])
    >>> events.peak_live_bytes
    150
    """
    _check_sizes(recorded)
    _check_streams(recorded)
    complete = _with_standing_blocks(_select(recorded, ~_is_null_block(recorded)))
    is_alloc = complete.action == Action.ALLOC
    block_id = _pair(complete, is_alloc)
    size_of, stream_of = complete.size[is_alloc], complete.stream[is_alloc]
    kept = size_of > 0
    chosen = kept[block_id]
    new_id = np.cumsum(kept) - 1
    stream_number = np.unique(stream_of, return_inverse=True)[1].astype(np.int32)
    return Events(
        op=np.where(is_alloc, ReplayOp.ALLOC, ReplayOp.FREE).astype(np.uint8)[chosen],
        block_id=new_id[block_id][chosen],
        size_bytes=size_of[block_id][chosen],
        stream=stream_number[block_id][chosen],
        index=complete.index[chosen],
        block_count=int(kept.sum()),
        standing_blocks=int((kept & (complete.index[is_alloc] < 0)).sum()),
    )


def _select(recorded: RecordedEvents, mask: NDArray[np.bool_]) -> RecordedEvents:
    return RecordedEvents(
        action=recorded.action[mask],
        addr=recorded.addr[mask],
        size=recorded.size[mask],
        stream=recorded.stream[mask],
        index=recorded.index[mask],
        standing=recorded.standing,
    )


def _is_null_block(recorded: RecordedEvents) -> NDArray[np.bool_]:
    # Allocators answer requests of zero bytes with a null address, any number of times.
    is_null: NDArray[np.bool_] = (recorded.addr == 0) & (recorded.size == 0)
    return is_null


def _check_sizes(recorded: RecordedEvents) -> None:
    negative = np.flatnonzero(recorded.size < 0)
    if len(negative):
        at = negative[0]
        raise TraceError(
            f"event {recorded.index[at]}: its size is {recorded.size[at]} bytes; sizes cannot be "
            "negative: record the trace again"
        )
    total = float(recorded.size.sum(dtype=np.float64))
    total += float(recorded.standing[:, 1].sum(dtype=np.float64))
    if total > _MAX_TOTAL_BYTES:
        raise TraceError(
            f"the sizes of all events add up to {total:.3g} bytes, more than the {2**62:.3g} that "
            "can be counted: check the column 'size'"
        )


def _check_streams(recorded: RecordedEvents) -> None:
    # By sorting: NumPy's other way to find unique values is a hash table, which a file could choose
    # its numbers against.
    streams = np.sort(np.concatenate([recorded.stream, recorded.standing[:, 2]]))
    count = np.count_nonzero(streams[1:] != streams[:-1]) + bool(len(streams))
    if count > MAX_STREAMS:
        raise TraceError(
            f"the events are of {count:,} streams, more than the {MAX_STREAMS:,} admitted; record "
            "a loop that uses its streams again, or check the column 'stream'"
        )


def _with_standing_blocks(recorded: RecordedEvents) -> RecordedEvents:
    """Put allocations of blocks that were live before the first event in front of the others."""
    addresses, opening = np.unique(recorded.addr, return_index=True)
    freed_first = np.sort(opening[recorded.action[opening] != Action.ALLOC])
    place = np.searchsorted(addresses, recorded.standing[:, 0])
    named = np.append(addresses, -1)[place] == recorded.standing[:, 0]
    unnamed = recorded.standing[~(named & (place < len(addresses)))]
    count = len(freed_first) + len(unnamed)
    rest = recorded.action != Action.FREE_REQUESTED

    def joined(column: Int64, unnamed_column: int) -> Int64:
        return np.concatenate([column[freed_first], unnamed[:, unnamed_column], column[rest]])

    return RecordedEvents(
        action=np.concatenate(
            [np.full(count, Action.ALLOC, dtype=np.uint8), recorded.action[rest]]
        ),
        addr=joined(recorded.addr, 0),
        size=joined(recorded.size, 1),
        stream=joined(recorded.stream, 2),
        index=np.concatenate([np.full(count, -1), recorded.index[rest]]),
        standing=unnamed[:0],
    )


def _pair(recorded: RecordedEvents, is_alloc: NDArray[np.bool_]) -> Int64:
    """The block id of each event: the rank of its allocation."""
    order = np.argsort(recorded.addr, kind="stable")
    same_address = np.zeros(len(order), dtype=np.bool_)
    same_address[1:] = recorded.addr[order[1:]] == recorded.addr[order[:-1]]
    alloc_in_order = is_alloc[order]
    repeated = same_address.copy()
    repeated[1:] &= alloc_in_order[1:] == alloc_in_order[:-1]
    if repeated.any():
        raise _contradiction(recorded, order, np.flatnonzero(repeated))
    block_id = np.cumsum(is_alloc) - 1
    frees = np.flatnonzero(~alloc_in_order)
    block_id[order[frees]] = block_id[order[frees - 1]]
    return block_id


def _contradiction(recorded: RecordedEvents, order: Int64, places: Int64) -> TraceError:
    place = places[np.argmin(order[places])]
    at, before = order[place], order[place - 1]
    address, what = recorded.addr[at], "freed a second time without being allocated in between"
    if recorded.action[at] == Action.ALLOC:
        what = "allocated again while its block is still live"
    return TraceError(
        f"event {recorded.index[at]}: address {address:#x} is {what} (its previous event is "
        f"{recorded.index[before]}); the trace lost events or mixes devices: record it again, from "
        "the start of the process, with a larger buffer and without skip_actions"
    )
