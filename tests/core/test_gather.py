"""The binding of the loader's copies: arrays gathered as NumPy does, integers checked."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from vramkit._core import (
    Gatherer,
    Piece,
    Plan,
    Segment,
    has_batched_copies,
    host_register,
    host_unregister,
    stream_copy,
)
from vramkit.errors import (
    ForkedPoolError,
    InvalidArgumentError,
    PoolClosedError,
    SystemCallError,
)

ROWS = 4096
TOO_MUCH = 2**64 + 5


def address(array: NDArray[np.generic]) -> int:
    return int(array.ctypes.data)


def piece(array: NDArray[np.generic], destination: NDArray[np.generic]) -> Piece:
    row_bytes = array[0].nbytes
    segment = Segment(address(array), 0, len(array))
    return Piece([segment], row_bytes, array.strides[0], address(destination))


@pytest.fixture
def gatherer() -> Iterator[Gatherer]:
    made = Gatherer(2)
    yield made
    made.close()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 16, 100, 1000])
def test_rows_are_numpys(threads: int, width: int, random: np.random.Generator) -> None:
    array = random.random((ROWS, width), dtype=np.float32)
    labels = random.integers(0, 10, ROWS)
    indices = random.integers(0, ROWS, 3000)
    rows, chosen = np.zeros((3000, width), np.float32), np.zeros(3000, np.int64)
    gatherer = Gatherer(threads)
    ticket = gatherer.submit(
        [piece(array, rows), piece(labels, chosen)], address(indices), len(indices)
    )
    assert gatherer.wait(ticket)
    np.testing.assert_array_equal(rows, array[indices])
    np.testing.assert_array_equal(chosen, labels[indices])


def test_strided_rows_in_several_segments(gatherer: Gatherer, random: np.random.Generator) -> None:
    parts = [random.random((rows, 300))[:, :200] for rows in (1000, 1, 3000)]
    firsts = (0, 1000, 1001)
    segments = [
        Segment(address(part), first, len(part)) for part, first in zip(parts, firsts, strict=True)
    ]
    indices = random.integers(0, 4001, 2000)
    rows = np.zeros((2000, 200))
    made = Piece(segments, 1600, 2400, address(rows))
    assert gatherer.wait(gatherer.submit([made], address(indices), 2000), timeout_s=60)
    np.testing.assert_array_equal(rows, np.concatenate(parts)[indices])


def test_a_plan_serves_many_jobs(gatherer: Gatherer, random: np.random.Generator) -> None:
    array = random.random((ROWS, 64))
    plan = Plan([Piece([Segment(address(array), 0, ROWS)], 512, 512)])
    batches = [np.zeros((2048, 64)) for _ in range(8)]
    orders = [random.permutation(ROWS)[:2048] for _ in batches]
    tickets = [
        plan.submit(gatherer, [address(batch)], address(order), 2048)
        for batch, order in zip(batches, orders, strict=True)
    ]
    assert all(ticket > 0 for ticket in tickets)
    del plan
    for ticket, batch, order in reversed(list(zip(tickets, batches, orders, strict=True))):
        assert gatherer.wait(ticket, None)
        np.testing.assert_array_equal(batch, array[order])


def test_a_bad_index_is_named(gatherer: Gatherer) -> None:
    array, rows = np.zeros((10, 4)), np.ones((3, 4))
    for bad in (-1, 10):
        indices = np.array([0, bad, 3])
        text = f"index {bad} at position 1 is out of range: piece 0 has 10 rows"
        with pytest.raises(InvalidArgumentError, match=text):
            gatherer.submit([piece(array, rows)], address(indices), 3)
    assert (rows == 1).all()


def test_tickets(gatherer: Gatherer) -> None:
    array, rows = np.ones((ROWS, 512)), np.zeros((ROWS, 512))
    indices = np.arange(ROWS)[::-1].copy()
    ticket = gatherer.submit([piece(array, rows)], address(indices), ROWS)
    while not gatherer.done(ticket):
        time.sleep(0.001)
    assert gatherer.wait(ticket, 0.0)
    for call in (lambda: gatherer.wait(ticket), lambda: gatherer.done(ticket)):
        with pytest.raises(InvalidArgumentError, match=f"has no ticket {ticket}"):
            call()
    assert gatherer.wait(0)
    assert gatherer.done(0)
    with pytest.raises(InvalidArgumentError, match="timeout_s must be a number"):
        gatherer.wait(1, float("nan"))


def test_a_wait_ends_in_time(gatherer: Gatherer) -> None:
    array, rows = np.ones((512, 32768)), np.zeros((512, 32768))
    indices = np.arange(512)[::-1].copy()
    # On a busy machine the jobs may be over before this thread runs again.
    for _ in range(100):
        jobs = [gatherer.submit([piece(array, rows)], address(indices), 512) for _ in range(2)]
        ended_early = not gatherer.wait(jobs[1], 0)
        assert all(gatherer.wait(job, float("inf")) for job in jobs[: 1 + ended_early])
        if ended_early:
            return
    pytest.fail("no wait has ended before its job was over")


def test_a_closed_gatherer_says_so(gatherer: Gatherer) -> None:
    array, rows = np.ones((512, 32768)), np.zeros((512, 32768))
    indices = np.arange(512)[::-1].copy()
    ticket = gatherer.submit([piece(array, rows)], address(indices), 512)
    gatherer.close()
    gatherer.close()
    for call in (
        lambda: gatherer.submit([piece(array, rows)], address(indices), 512),
        lambda: gatherer.wait(ticket),
        lambda: gatherer.done(ticket),
    ):
        with pytest.raises(PoolClosedError, match="the gatherer has been closed"):
            call()


def test_threads_end_with_the_object() -> None:
    def gather_threads() -> int:
        names = []
        for task in os.listdir("/proc/self/task"):  # noqa: PTH208
            with open(f"/proc/self/task/{task}/comm") as file:  # noqa: PTH123
                names.append(file.read().strip())
        return names.count("vramkit-gather")

    before = gather_threads()
    made = Gatherer(3)
    assert gather_threads() == before + 3
    del made
    assert gather_threads() == before


def test_a_process_may_end_with_jobs_in_flight() -> None:
    program = """
import threading
import numpy as np
from vramkit._core import Gatherer, Piece, Segment

array, rows = np.ones((512, 32768)), np.zeros((512, 32768))
indices = np.arange(512)[::-1].copy()
piece = Piece([Segment(array.ctypes.data, 0, 512)], 262144, 262144, rows.ctypes.data)
gatherer = Gatherer(2)
tickets = [gatherer.submit([piece], indices.ctypes.data, 512) for _ in range(20)]
threading.excepthook = lambda _: None
threading.Thread(target=gatherer.wait, args=(tickets[-1],), daemon=True).start()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_no_gatherer(gatherer: Gatherer) -> None:
    array, rows = np.ones((4, 4)), np.zeros((4, 4))
    indices = np.arange(4)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            gatherer.submit([piece(array, rows)], address(indices), 4)
        except ForkedPoolError as error:
            status = 0 if "belongs to process" in str(error) else 2
        finally:
            del gatherer
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    gatherer.submit([piece(array, rows)], address(indices), 4)
    assert (rows == 1).all()


@pytest.mark.parametrize("size_bytes", [0, 1, 63, 4096, 8191, 8192, 100_001])
def test_stream_copy(size_bytes: int, random: np.random.Generator) -> None:
    source = random.integers(0, 256, size_bytes + 3, dtype=np.uint8)
    copied = np.full(size_bytes + 9, 7, np.uint8)
    stream_copy(address(copied) + 5, address(source) + 3, size_bytes)
    np.testing.assert_array_equal(copied[5 : size_bytes + 5], source[3:])
    assert (copied[:5] == 7).all()
    assert (copied[size_bytes + 5 :] == 7).all()


def test_no_integer_wraps(gatherer: Gatherer) -> None:
    array, rows = np.ones((4, 4)), np.zeros((4, 4))
    indices = np.arange(4)
    plan = Plan([piece(array, rows)])
    to, at = address(rows), address(indices)
    for call in (
        lambda: Gatherer(2**32),
        lambda: Gatherer(-1),
        lambda: Plan([Piece([Segment(TOO_MUCH, 0, 1)], 8, 8)]),
        lambda: Plan([Piece([Segment(to, -1, 1)], 8, 8)]),
        lambda: Plan([Piece([Segment(to, 0, TOO_MUCH)], 8, 8)]),
        lambda: Plan([Piece([Segment(to, 0, 1)], -8, 8)]),
        lambda: Plan([Piece([Segment(to, 0, 1)], 8, TOO_MUCH)]),
        lambda: plan.submit(gatherer, [TOO_MUCH], at, 4),
        lambda: plan.submit(gatherer, [to], at + 2**64, 4),
        lambda: plan.submit(gatherer, [to], at, -1),
        lambda: plan.copy_to_device([TOO_MUCH], at, 4, 0, 2),
        lambda: plan.copy_to_device([to], at + 2**64, 4, 0, 2),
        lambda: plan.copy_to_device([to], at, -1, 0, 2),
        lambda: plan.copy_to_device([to], at, 4, 2**31, 2),
        lambda: plan.copy_to_device([to], at, 4, 0, -1),
        lambda: gatherer.wait(TOO_MUCH),
        lambda: gatherer.done(-1),
        lambda: stream_copy(TOO_MUCH, at, 1),
        lambda: stream_copy(to, -1, 1),
        lambda: stream_copy(to, at, TOO_MUCH),
        lambda: host_register(TOO_MUCH, 1, 0),
        lambda: host_register(to, -1, 0),
        lambda: host_register(to, 1, 2**31),
        lambda: host_unregister(-1),
    ):
        with pytest.raises(InvalidArgumentError, match="must be between"):
            call()
    assert (rows == 0).all()


def test_wrong_arguments_are_refused(gatherer: Gatherer) -> None:
    array, rows = np.ones((4, 4)), np.zeros((4, 4))
    indices = np.arange(4)
    plan = Plan([piece(array, rows)])
    for destinations in ([], [address(rows)] * 2):
        with pytest.raises(InvalidArgumentError, match="the plan has 1 pieces"):
            plan.submit(gatherer, destinations, address(indices), 4)
    with pytest.raises(InvalidArgumentError, match="indices is a null pointer"):
        plan.submit(gatherer, [address(rows)], 0, 4)
    with pytest.raises(InvalidArgumentError, match="a destination of 128 bytes cannot begin"):
        plan.submit(gatherer, [0], address(indices), 4)
    with pytest.raises(InvalidArgumentError, match="at most 1024 threads"):
        Gatherer(1025)
    with pytest.raises(InvalidArgumentError, match="to is a null pointer"):
        stream_copy(0, address(array), 1)


def test_threads_may_share_a_gatherer(gatherer: Gatherer, random: np.random.Generator) -> None:
    array = random.random((ROWS, 128))
    plan = Plan([Piece([Segment(address(array), 0, ROWS)], 1024, 1024)])
    wrong = []

    def gather(seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(20):
            order, rows = own.integers(0, ROWS, 1000), np.zeros((1000, 128))
            gatherer.wait(plan.submit(gatherer, [address(rows)], address(order), 1000))
            if not np.array_equal(rows, array[order]):
                wrong.append(seed)

    threads = [threading.Thread(target=gather, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_without_a_driver_registration_says_so() -> None:
    memory = np.zeros(1 << 20, np.uint8)
    try:
        host_register(address(memory), memory.nbytes, 0)
    except SystemCallError as error:
        assert "CUDA driver" in str(error) or "locked memory" in str(error)  # noqa: PT017
    else:
        host_unregister(address(memory))
    with pytest.raises(InvalidArgumentError, match="no host memory was registered"):
        host_unregister(address(memory))


def test_a_copy_to_the_device_checks_its_arguments_first() -> None:
    array, rows = np.zeros((10, 4)), np.ones((3, 4))
    plan, to = Plan([piece(array, rows)]), address(rows)
    for bad in (-1, 10):
        indices = np.array([0, bad, 3])
        text = f"index {bad} at position 1 is out of range: piece 0 has 10 rows"
        with pytest.raises(InvalidArgumentError, match=text):
            plan.copy_to_device([to], address(indices), 3, 0, 2)
    indices = np.arange(3)
    for stream in (0, 1):
        with pytest.raises(InvalidArgumentError, match="on the default stream"):
            plan.copy_to_device([to], address(indices), 3, 0, stream)
    with pytest.raises(InvalidArgumentError, match="the plan has 1 pieces, got 2 destinations"):
        plan.copy_to_device([to, to], address(indices), 3, 0, 2)
    with pytest.raises(InvalidArgumentError, match="indices is a null pointer"):
        plan.copy_to_device([to], 0, 3, 0, 2)
    with pytest.raises(InvalidArgumentError, match="a destination of 96 bytes cannot begin"):
        plan.copy_to_device([0], address(indices), 3, 0, 2)
    assert (rows == 1).all()


def test_without_a_driver_there_are_no_batched_copies() -> None:
    array, rows, indices = np.zeros((10, 4)), np.ones((3, 4)), np.arange(3)
    plan = Plan([piece(array, rows)])
    # No machine has this device, so that one with a driver refuses too.
    error = InvalidArgumentError if has_batched_copies() else SystemCallError
    with pytest.raises(error, match="CUDA d"):
        plan.copy_to_device([address(rows)], address(indices), 3, 999, 2)
    assert (rows == 1).all()
