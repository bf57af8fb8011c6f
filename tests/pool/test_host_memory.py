"""The memory limits, against made-up /proc and /sys trees."""

from pathlib import Path

import pytest

from vramkit.pool import _host_memory

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path / "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    return tmp_path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_groups_the_machine_counts(root: Path) -> None:
    assert _host_memory.total_bytes(root) == 16 * GIB
    assert _host_memory.free_bytes(root) == 8 * GIB


def _v2_group(root: Path, path: str, limit: str, used: int, cache: int = 0) -> None:
    folder = root / "sys/fs/cgroup" / path
    _write(folder / "memory.max", f"{limit}\n")
    _write(folder / "memory.current", f"{used}\n")
    _write(folder / "memory.stat", f"anon 5\ninactive_file {cache}\nactive_file 7\n")


def test_v2_limit_less_use(root: Path) -> None:
    _write(root / "proc/self/cgroup", "0::/job/step\n")
    _v2_group(root, "job/step", str(4 * GIB), used=3 * GIB)
    assert _host_memory.total_bytes(root) == 4 * GIB
    assert _host_memory.free_bytes(root) == 1 * GIB


def test_v2_the_tightest_group_above_counts(root: Path) -> None:
    _write(root / "proc/self/cgroup", "0::/job/step\n")
    _v2_group(root, "job/step", "max", used=1 * GIB)
    _v2_group(root, "job", str(6 * GIB), used=4 * GIB)
    assert _host_memory.total_bytes(root) == 6 * GIB
    assert _host_memory.free_bytes(root) == 2 * GIB


def test_v2_page_cache_counts_as_free(root: Path) -> None:
    _write(root / "proc/self/cgroup", "0::/\n")
    _v2_group(root, "", str(4 * GIB), used=3 * GIB, cache=2 * GIB)
    assert _host_memory.free_bytes(root) == 3 * GIB


def test_v2_use_above_the_limit_leaves_nothing(root: Path) -> None:
    _write(root / "proc/self/cgroup", "0::/\n")
    _v2_group(root, "", str(1 * GIB), used=2 * GIB)
    assert _host_memory.free_bytes(root) == 0


def _v1_group(root: Path, path: str, limit: int, used: int) -> None:
    folder = root / "sys/fs/cgroup/memory" / path
    _write(folder / "memory.limit_in_bytes", f"{limit}\n")
    _write(folder / "memory.usage_in_bytes", f"{used}\n")
    _write(folder / "memory.stat", f"total_inactive_file {GIB}\n")


def test_v1_limit_less_use_and_cache(root: Path) -> None:
    _write(root / "proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    _v1_group(root, "docker/abc", 5 * GIB, used=3 * GIB)
    assert _host_memory.total_bytes(root) == 5 * GIB
    assert _host_memory.free_bytes(root) == 3 * GIB


def test_v1_in_a_container_the_mount_is_the_group(root: Path) -> None:
    _write(root / "proc/self/cgroup", "4:memory:/docker/not-visible-here\n")
    _v1_group(root, "", 3 * GIB, used=2 * GIB)
    assert _host_memory.total_bytes(root) == 3 * GIB


def test_v1_without_limit_the_machine_counts(root: Path) -> None:
    _write(root / "proc/self/cgroup", "4:memory:/\n")
    _v1_group(root, "", 9223372036854771712, used=2 * GIB)
    assert _host_memory.total_bytes(root) == 16 * GIB
    assert _host_memory.free_bytes(root) == 8 * GIB


def test_this_machine_has_memory() -> None:
    assert 0 < _host_memory.free_bytes() <= _host_memory.total_bytes()
