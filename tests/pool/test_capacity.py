from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from vramkit._core import CorePool
from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.pool import _capacity, _cuda, _host_memory
from vramkit.pool._capacity import checked_page_bytes, default_page_bytes, room_on
from vramkit.pool._device import CPU, PoolDevice

GIB = 1 << 30
PAGE = 2 << 20


def capacity_bytes(capacity: float | str, *, page_bytes: int) -> int:
    return _capacity.capacity_bytes(capacity, page_bytes=page_bytes, room=room_on(CPU))


@pytest.fixture(autouse=True)
def _machine_of_8_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host_memory, "total_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(_host_memory, "free_bytes", lambda: 4 * GIB)


@pytest.mark.parametrize(
    ("capacity", "size_bytes"),
    [
        (GIB, GIB),
        (np.int64(GIB), GIB),
        ("2GiB", 2 * GIB),
        ("2GB", 2 * 10**9),
        ("8GiB", 8 * GIB),
        (1.0, 4 * GIB),
        (0.25, GIB),
        (np.float32(0.5), 2 * GIB),
        (Fraction(1, 4), GIB),
        (PAGE, PAGE),
    ],
)
def test_what_a_capacity_may_be(capacity: float | str, size_bytes: int) -> None:
    assert capacity_bytes(capacity, page_bytes=PAGE) == size_bytes


@pytest.mark.parametrize("capacity", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_parts_outside_0_to_1_are_refused(capacity: float) -> None:
    with pytest.raises(CapacityError, match=r"a fraction of the free memory must be in \(0, 1\]"):
        capacity_bytes(capacity, page_bytes=PAGE)


@pytest.mark.parametrize("capacity", [True, None, [1], Decimal("0.5"), 1j])
def test_other_types_are_refused(capacity: object) -> None:
    with pytest.raises(TypeError, match="capacity must be an integer number of bytes or a text"):
        capacity_bytes(capacity, page_bytes=PAGE)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [0, -5, "0MiB"])
def test_nothing_is_refused(capacity: int | str) -> None:
    with pytest.raises(CapacityError, match="capacity must be at least 1 byte"):
        capacity_bytes(capacity, page_bytes=PAGE)


@pytest.mark.parametrize("capacity", [1, "1MiB", 1e-9])
def test_less_than_a_page_is_refused(capacity: float | str) -> None:
    with pytest.raises(
        CapacityError, match=r"less than one page of 2\.0 MiB; a whole number counts"
    ):
        capacity_bytes(capacity, page_bytes=PAGE)


def test_figures_that_look_the_same_show_their_bytes() -> None:
    with pytest.raises(CapacityError) as caught:
        capacity_bytes(PAGE - 1, page_bytes=PAGE)
    assert str(caught.value) == (
        "capacity 2097151 is 2.0 MiB (2,097,151 bytes), less than one page of 2.0 MiB (2,097,152 "
        "bytes); a whole number counts bytes: give at least '2MiB', or a float such as 0.5 for a "
        "part of the free memory"
    )
    with pytest.raises(CapacityError, match=r"is 8\.0 GiB \(8,589,934,593 bytes\), but this"):
        capacity_bytes(8 * GIB + 1, page_bytes=PAGE)


@pytest.mark.parametrize("text", ["0.5", "50%", "1.0"])
def test_a_text_is_no_part_of_the_free_memory_and_says_so(text: str) -> None:
    with pytest.raises(CapacityError, match=r"or a float such as 0\.5 for a part of"):
        capacity_bytes(text, page_bytes=PAGE)


def test_a_device_that_is_full_gets_no_advice_that_is_refused() -> None:
    room = _capacity.Room(PAGE - 1, PAGE - 1, "cuda:0 is full")
    with pytest.raises(CapacityError, match="free memory first: a pool needs at least '2MiB'"):
        _capacity.capacity_bytes(PAGE, page_bytes=PAGE, room=room)


def test_the_core_has_the_same_limits_of_pages() -> None:
    for page in (_capacity.MIN_PAGE_BYTES, _capacity.MAX_PAGE_BYTES):
        make_null_pool(page)
    for page in (_capacity.MIN_PAGE_BYTES // 2, 2 * _capacity.MAX_PAGE_BYTES):
        with pytest.raises(InvalidArgumentError, match="power of two from 64KiB to 1GiB"):
            make_null_pool(page)


def make_null_pool(page_bytes: int) -> None:
    CorePool.create(
        backend="null", label="test", capacity_bytes=4 * GIB, page_bytes=page_bytes
    ).close()


@pytest.mark.parametrize("capacity", [8 * GIB + 1, "9GiB", 2**64 + GIB, 10**30])
def test_more_than_the_machine_is_refused_with_numbers(capacity: int | str) -> None:
    with pytest.raises(
        CapacityError,
        match=r"at most 8\.0 GiB .* of which 4\.0 GiB are free now; ask for at most \'8GiB\'",
    ):
        capacity_bytes(capacity, page_bytes=PAGE)


def test_a_text_that_cannot_be_read_is_a_capacity_error() -> None:
    with pytest.raises(CapacityError, match="capacity '2G': the unit 'G' is ambiguous"):
        capacity_bytes("2G", page_bytes=PAGE)


@pytest.mark.parametrize(
    ("page", "size_bytes"), [("64KiB", 1 << 16), (PAGE, PAGE), ("4MiB", 4 << 20)]
)
def test_page_sizes(page: int | str, size_bytes: int) -> None:
    assert checked_page_bytes(page) == size_bytes


@pytest.mark.parametrize("page", [4096, "3MiB", (1 << 16) - 1, "2GiB"])
def test_page_sizes_that_cannot_work(page: int | str) -> None:
    with pytest.raises(InvalidArgumentError, match="power of two from '64KiB' to '1GiB', got"):
        checked_page_bytes(page)


@pytest.mark.parametrize(
    ("capacity_gib", "page_mib"),
    [(0.002, 2), (7.99, 2), (8, 4), (31.99, 4), (32, 8), (40, 8), (64, 16), (128, 32), (180, 32)],
)
def test_large_cuda_pools_have_larger_pages_since_mapping_costs_by_the_page(
    capacity_gib: float, page_mib: int
) -> None:
    capacity = int(capacity_gib * GIB)
    assert default_page_bytes(PoolDevice(0), capacity) == page_mib << 20
    assert default_page_bytes(CPU, capacity) == PAGE


def test_on_cuda_no_more_than_is_free_and_a_resized_pool_may_keep_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_cuda, "free_bytes", lambda ordinal: (ordinal + 1) * GIB)
    monkeypatch.setattr(_cuda, "describe_memory", lambda ordinal: f"cuda:{ordinal} is nearly full")
    room = room_on(PoolDevice(2))
    assert _capacity.capacity_bytes(0.5, page_bytes=PAGE, room=room) == 3 * GIB // 2
    assert _capacity.capacity_bytes("3GiB", page_bytes=PAGE, room=room) == 3 * GIB
    with pytest.raises(
        CapacityError,
        match=r"capacity \'4GiB\' is 4\.0 GiB, but cuda:2 is nearly full; ask for at most \'3GiB\'",
    ):
        _capacity.capacity_bytes("4GiB", page_bytes=PAGE, room=room)
    room = room_on(PoolDevice(2), held_bytes=GIB)
    assert _capacity.capacity_bytes("4GiB", page_bytes=PAGE, room=room) == 4 * GIB
    assert _capacity.capacity_bytes(0.5, page_bytes=PAGE, room=room) == 3 * GIB // 2


def test_an_upstream_resource_alone_knows_what_it_can_give() -> None:
    assert _capacity.capacity_bytes("9000GiB", page_bytes=PAGE, room=None) == 9000 * GIB
    with pytest.raises(CapacityError, match=r"0\.5: .* with upstream= nobody knows what the"):
        _capacity.capacity_bytes(0.5, page_bytes=PAGE, room=None)
