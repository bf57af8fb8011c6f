"""No integer wraps on its way into the core."""

import ctypes
import re
from pathlib import Path

import pytest

from vramkit._core import CorePool, CoreReplay, close_scope, owner
from vramkit._core._checked import Address, Integer
from vramkit._core._library import OTHER_FUNCTIONS, STATUS_FUNCTIONS, invoke
from vramkit._core._python import FREE_FUNCTIONS
from vramkit.errors import CapacityError, InvalidArgumentError, PoolOutOfMemoryError

BINDING = Path(__file__).parents[2] / "vramkit"
TOO_MUCH = 2**64 + 5


@pytest.fixture
def pool() -> CorePool:
    return CorePool.create(backend="host", label="x", capacity_bytes=4 << 20, page_bytes=65536)


def test_a_request_is_not_taken_modulo_the_range(pool: CorePool) -> None:
    text = (
        "size_bytes must be between 0 and 18,446,744,073,709,551,615, which is all that the core "
        "can count, got 18,446,744,073,709,551,621"
    )
    with pytest.raises(InvalidArgumentError, match=re.escape(text)):
        pool.alloc(TOO_MUCH)
    with pytest.raises(InvalidArgumentError, match=r"size_bytes must be .*, got -1"):
        pool.alloc(-1)
    assert pool.stats()["allocations"] == 0


def test_a_capacity_is_not_taken_modulo_the_range(pool: CorePool) -> None:
    text = "capacity_bytes must be between 0 and .*, got 18,446,744,073,713,745,920"
    wrapping = 18446744073713745920
    with pytest.raises(CapacityError, match=text):
        CorePool.create(backend="host", label="x", capacity_bytes=wrapping)
    with pytest.raises(CapacityError, match=text):
        pool.resize(wrapping)
    with pytest.raises(InvalidArgumentError, match="page_bytes must be between"):
        CorePool.create(backend="host", label="x", capacity_bytes=4 << 20, page_bytes=2**64 + 65536)


def test_every_other_integer(pool: CorePool) -> None:
    address = pool.alloc(1000)
    for call in (
        lambda: pool.alloc(1000, stream=TOO_MUCH),
        lambda: pool.alloc(1000, stack_id=2**32),
        lambda: pool.free(address + 2**64),
        lambda: pool.free_on(address, TOO_MUCH),
        lambda: pool.record_stream(address, -1),
        lambda: pool.find_block(address + 2**64),
        lambda: pool.explain(TOO_MUCH),
        lambda: pool.open_scope(2**32 - 1),
        lambda: pool.fault("map_primary", TOO_MUCH),
        lambda: pool.complete_events(-1),
        lambda: CoreReplay(pool, TOO_MUCH),
        lambda: close_scope(TOO_MUCH),
        lambda: owner(address + 2**64),
    ):
        with pytest.raises(InvalidArgumentError, match="must be between"):
            call()
    with pytest.raises(TypeError):
        pool.alloc(1.5)  # type: ignore[arg-type]
    pool.free(address)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_ends_of_the_ranges_pass(pool: CorePool, bits: int) -> None:
    kind = {32: ctypes.c_uint32, 64: ctypes.c_uint64}[bits]
    assert Integer("it", kind).check(2**bits - 1) == 2**bits - 1
    assert Integer("it", kind).check(0) == 0
    signed = Integer("it", ctypes.c_int32)
    assert (signed.check(-(2**31)), signed.check(2**31 - 1)) == (-(2**31), 2**31 - 1)
    with pytest.raises(PoolOutOfMemoryError, match="out of memory"):
        pool.alloc(2**64 - 1)


def test_pointers_pass_an_address_unchecked() -> None:
    reference = ctypes.byref(ctypes.c_uint64())
    assert Address("it").check(reference) is reference
    assert Address("it").check(None) is None


def test_every_integer_of_every_function_is_checked() -> None:
    plain = (ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint32, ctypes.c_int32, ctypes.c_void_p)
    tables = [*STATUS_FUNCTIONS.items(), *((f, a) for f, (_, a) in OTHER_FUNCTIONS.items())]
    assert [name for name, arguments in tables if set(plain) & set(arguments)] == []


def test_functions_with_integers_are_called_through_the_check() -> None:
    """``library().vramkit_x(...)`` goes past it: only where there is nothing to check."""
    direct = set()
    for path in BINDING.rglob("*.py"):
        direct |= set(re.findall(r"library\(\)\.(vramkit_\w+)\(", path.read_text()))
    # The Python part takes no integers of users.
    assert direct <= {"vramkit_core", "vramkit_last_error", *FREE_FUNCTIONS}


def test_arguments_are_counted() -> None:
    with pytest.raises(ValueError, match="argument"):
        invoke("vramkit_owner", 1, 2)
