"""A pool of the core as an object: one method for each function, no more."""

import ctypes

from vramkit._core import _structs as s
from vramkit._core._library import call, invoke, raise_status
from vramkit._core._python import close_scopes, new_route, open_scopes, record_stacks
from vramkit.errors import ForkedPoolError, PoolClosedError


class CorePool:
    """A pool of the core, released with the object; usable from any thread.

    Attributes:
        handle: The core's handle, which is valid for the life of the process.
        route: What opens the pool's scopes and owns the pool.
    """

    def __init__(self, config: s.PoolConfig) -> None:
        """Create the pool that ``config`` describes."""
        self.route, route = new_route(s.DEVICE_CPU)
        # The core writes the handle into what owns it: wherever an interrupt comes, no pool is
        # without an owner.
        slot = ctypes.cast(route, ctypes.POINTER(ctypes.c_void_p))
        call("vramkit_pool_create", ctypes.byref(config), slot)
        self.handle = route.contents.pool or 0
        self._route_struct = route

    @classmethod
    def create(
        cls,
        *,
        backend: str,
        capacity_bytes: int,
        label: str,
        page_bytes: int = 0,
        overflow_native: bool = False,
        debug_checks: bool = False,
    ) -> "CorePool":
        """Create a pool (see ``vramkit_pool_config`` for the meaning of each option)."""
        config = s.PoolConfig(
            backend.encode(),
            label.encode(),
            capacity_bytes,
            page_bytes,
            overflow_native,
            debug_checks,
        )
        return cls(config)

    def close(self) -> None:
        """Give everything back; refused while blocks are live."""
        call("vramkit_pool_close", self.handle)

    def release(self) -> None:
        """Close now, or when the last live block is freed."""
        call("vramkit_pool_release", self.handle)

    def resize(self, capacity_bytes: int) -> None:
        """Change the capacity."""
        call("vramkit_pool_resize", self.handle, capacity_bytes)

    def trim(self) -> int:
        """Give back the physical memory of free pages; returns the bytes given back."""
        released = ctypes.c_uint64()
        call("vramkit_pool_trim", self.handle, ctypes.byref(released))
        return released.value

    def check(self) -> None:
        """Check every invariant."""
        call("vramkit_pool_check", self.handle)

    def alloc(self, size_bytes: int, *, stream: int = 0, stack_id: int = 0) -> int:
        """Allocate; returns the address."""
        address = ctypes.c_void_p()
        call(
            "vramkit_alloc",
            self.handle,
            size_bytes,
            stream,
            stack_id,
            ctypes.byref(address),
        )
        return address.value or 0

    def free(self, address: int) -> int:
        """Free the block that starts at ``address``; returns its requested bytes."""
        size = ctypes.c_uint64()
        call("vramkit_free", self.handle, address, ctypes.byref(size))
        return size.value

    def free_on(self, address: int, stream: int) -> int:
        """Free the block where ``stream`` comes after all work on it, but for recorded uses."""
        size = ctypes.c_uint64()
        call("vramkit_free_on", self.handle, address, stream, ctypes.byref(size))
        return size.value

    def record_stream(self, address: int, stream: int) -> None:
        """Say that work queued on ``stream`` uses the block."""
        call("vramkit_record_stream", self.handle, address, stream)

    def declare_external_stream(self, stream: int) -> None:
        """Say that ``stream`` may be destroyed while the pool lives, even before its blocks."""
        call("vramkit_declare_external_stream", self.handle, stream)

    def find_block(self, address: int) -> s.Block:
        """The live block that holds ``address``."""
        block = s.Block()
        call("vramkit_find_block", self.handle, address, ctypes.byref(block))
        return block

    def snapshot(self) -> list[s.Block]:
        """All blocks, by address."""
        count, room = ctypes.c_uint64(), 0
        blocks = (s.Block * 0)()
        while True:
            call("vramkit_snapshot", self.handle, blocks, room, ctypes.byref(count))
            if count.value <= room:
                return list(blocks[: count.value])
            # Other threads go on allocating between the two calls.
            room = count.value + count.value // 8 + 64
            blocks = (s.Block * room)()

    def stats(self) -> dict[str, int]:
        """The counters of ``vramkit_stats`` by name."""
        stats = s.Stats()
        call("vramkit_pool_stats", self.handle, ctypes.byref(stats))
        return {name: getattr(stats, name) for name in s.STATS_FIELDS}

    def size_classes(self) -> list[s.SizeClass]:
        """One row for each size class."""
        rows = (s.SizeClass * s.SIZE_CLASSES)()
        call("vramkit_pool_size_classes", self.handle, rows)
        return list(rows)

    def reset_peaks(self) -> None:
        """Set the peaks to the present values."""
        call("vramkit_pool_reset_peaks", self.handle)

    def explain(self, size_bytes: int) -> str:
        """Why ``size_bytes`` could not be served now."""
        length, room = ctypes.c_uint64(), 4096
        while True:
            text = ctypes.create_string_buffer(room)
            call(
                "vramkit_explain",
                self.handle,
                size_bytes,
                text,
                room,
                ctypes.byref(length),
            )
            if length.value < room:
                return text.value.decode(errors="replace")
            room = length.value + 1024

    def record_stacks(self) -> None:
        """Note the Python stack of each allocation that is routed to the pool."""
        status = record_stacks(self.handle)
        if status:
            raise_status(s.Status(status))

    def open_scopes(self) -> int:
        """Number of scopes that were opened through :attr:`route`."""
        return open_scopes(self._route_struct)

    def close_scopes(self) -> int:
        """End the scopes that were opened through :attr:`route`; returns how many there were."""
        return close_scopes(self._route_struct)

    def open_scope(self, device: int = s.DEVICE_CPU) -> int:
        """Route the device's allocations to this pool; returns the token that ends it."""
        token = ctypes.c_uint64()
        call("vramkit_scope_open", self.handle, device, ctypes.byref(token))
        return token.value

    def fault(self, backend_call: str, nth: int) -> None:
        """Let the n-th next backend call of that name fail (backends with ``+faults``)."""
        call("vramkit_fault", self.handle, backend_call.encode(), nth)

    def complete_events(self, count: int) -> None:
        """Let the oldest events complete (backends with ``+late_events``)."""
        call("vramkit_complete_events", self.handle, count)


def close_scope(token: int) -> None:
    """End the scope with that token."""
    call("vramkit_scope_close", token)


def owner(address: int) -> int:
    """Handle of the pool whose addresses hold ``address``, or 0."""
    return invoke("vramkit_owner", address) or 0


def active_pool(device: int = s.DEVICE_CPU) -> int:
    """Handle of the pool that the device's allocations go to, or 0."""
    return invoke("vramkit_active_pool", device) or 0


def is_closed(handle: int) -> bool:
    """Whether the pool has closed; in a forked child, the pools of its parent have not."""
    try:
        call("vramkit_pool_stats", handle, ctypes.byref(s.Stats()))
    except PoolClosedError:
        return True
    except ForkedPoolError:
        return False
    return False
