"""The end of a pool: its user closes it, or its object is gone."""

from vramkit._core import BlockState, CorePool, frames
from vramkit.errors import ForkedPoolError, PoolBusyError, PoolClosedError
from vramkit.pool import _cuda, _upstream
from vramkit.pool._device import PoolDevice
from vramkit.units import format_mib

_LISTED = 10


def close(core: CorePool, device: PoolDevice) -> None:
    """Give everything back.

    On CUDA, what PyTorch's libraries keep for ever is dropped first where it stands in the way.

    Raises:
        PoolBusyError: Blocks are live; the text names the largest.
    """
    try:
        _close_core(core)
    except PoolBusyError as err:
        kept, busy = "", err
    else:
        return
    if device.kind == "cuda":
        kept = _cuda.drop_workspaces(device.ordinal)
        try:
            _close_core(core)
        except PoolBusyError as err:
            busy = err
        else:
            return
    raise PoolBusyError("\n".join(filter(None, [str(busy), *_largest_blocks(core), kept])))


def _close_core(core: CorePool) -> None:
    core.close()
    _upstream.give_back()


def release(core: CorePool) -> None:
    """The pool object is gone: the memory that a resource gave goes back after the last block."""
    core.close_scopes()
    try:
        core.release()
    except (PoolClosedError, ForkedPoolError):
        return
    _upstream.watch(core)


def _largest_blocks(core: CorePool) -> list[str]:
    live = [block for block in core.snapshot() if block.state == BlockState.LIVE]
    live.sort(key=lambda block: block.requested_bytes, reverse=True)
    if not live:
        return []
    lines = [f"The {min(len(live), _LISTED)} largest:" if len(live) > 1 else "The largest:"]
    for block in live[:_LISTED]:
        where = " <- ".join(frames(block.stack_id)[:3])
        lines.append(
            f"  {format_mib(block.requested_bytes):>12} at {block.address:#x}"
            + (f", allocated at {where}" if where else "")
        )
    return lines
