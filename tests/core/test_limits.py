"""Pools in processes that may have few addresses (`ulimit -v`), each in a process of its own."""

import pytest
from helpers.pools import run_script

_START = """
import os, resource, sys

def addresses():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")

def limit(more_bytes):
    resource.setrlimit(resource.RLIMIT_AS, (addresses() + more_bytes,) * 2)

from vramkit import errors
from vramkit._core import CorePool

MIB = 1 << 20
GIB = 1 << 30

def make(capacity_bytes, backend="host"):
    return CorePool.create(
        backend=backend, label="cpu", capacity_bytes=capacity_bytes, page_bytes=1 << 16
    )
"""


@pytest.mark.parametrize("backend", ["host", "memfd", "null"])
@pytest.mark.parametrize("limit_mib", [256, 1024, 4096, 65536])
def test_a_small_pool_needs_few_addresses(backend: str, limit_mib: int) -> None:
    run_script(
        _START
        + f"""
limit({limit_mib} * MIB)
before = addresses()
pool = make(8 * MIB, "{backend}")
assert addresses() - before <= {limit_mib} * MIB * 3 // 4, addresses() - before
blocks = [pool.alloc(MIB) for _ in range(8)]
for block in blocks[::2]:
    pool.free(block)
if {limit_mib} > 256:  # there are addresses to stitch at
    pool.free(pool.alloc(3 * MIB))
for block in blocks[1::2]:
    pool.free(block)
pool.close()
"""
    )


def test_several_pools_share_what_is_left() -> None:
    run_script(
        _START
        + """
limit(4 * GIB)
pools = [make(16 * MIB) for _ in range(6)]
for pool in pools:
    pool.free(pool.alloc(16 * MIB))
"""
    )


def test_growing_beyond_the_addresses_names_what_is_left() -> None:
    told = run_script(
        _START
        + """
limit(GIB)
pool = make(64 * MIB)
pool.resize(128 * MIB)
try:
    pool.resize(GIB)
except errors.InvalidArgumentError as err:
    print(err)
"""
    )
    assert "cpu: cannot grow by 896.0 MiB to 1.0 GiB" in told
    assert "within the limit of this process (`ulimit -v`)" in told
    assert "more, up to a capacity of" in told


def test_a_pool_that_is_too_large_names_the_limit() -> None:
    told = run_script(
        _START
        + """
limit(100 * MIB)
try:
    make(128 * MIB)
except errors.SystemCallError as err:
    print(err)
"""
    )
    assert "of address space: Cannot allocate memory; the process may have" in told
    assert "(`ulimit -v`)" in told
    assert "make a smaller pool, or raise the limit" in told


def test_without_a_limit_a_pool_reserves_by_its_capacity() -> None:
    run_script(
        _START
        + """
before = addresses()
make(8 * MIB)
assert addresses() - before < 9 * GIB, addresses() - before
"""
    )


def test_tensors_under_a_limit() -> None:
    run_script(
        """
        import os, resource
        import torch, vramkit

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
        with vramkit.MemoryPool("64MiB", device="cpu") as pool:
            assert float(torch.ones(1 << 20).sum()) == 1 << 20
        """
    )
