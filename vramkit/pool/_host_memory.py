"""How much memory this process may use: the machine's, or its control group's if that is less."""

from pathlib import Path

_ROOT = Path("/")


def total_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process could ever use: MemTotal, or the smallest control-group limit.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    return min([_meminfo(root)["MemTotal"], *(limit for limit, _ in _group_limits(root))])


def free_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process could use now: MemAvailable, or what is left under the limits.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    left = [max(limit - used, 0) for limit, used in _group_limits(root)]
    return min([_meminfo(root)["MemAvailable"], *left])


def _meminfo(root: Path) -> dict[str, int]:
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    pairs = (line.split()[:2] for line in lines)
    return {name.rstrip(":"): int(kib) * 1024 for name, kib in pairs}


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """Limit and use, in bytes, of this process's memory control group and those above it."""
    limits: list[tuple[int, int]] = []
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        for mount in mounts:
            limits += _limits_upward(mount, path, names)
    return limits


def _limits_upward(mount: Path, path: str, names: tuple[str, str, str]) -> list[tuple[int, int]]:
    # Inside a container the path is often the host's and absent here: then only the mount's own
    # files are there, and they are this container's.
    group = mount / path.lstrip("/")
    found = (
        _limit(folder, names)
        for folder in (group, *group.parents)
        if mount in (folder, *folder.parents)
    )
    return [limit for limit in found if limit is not None]


def _limit(folder: Path, names: tuple[str, str, str]) -> tuple[int, int] | None:
    limit_name, usage_name, cache_name = names
    limit, usage = _lines(folder / limit_name), _lines(folder / usage_name)
    if not limit or not usage or limit[0] == "max":
        return None
    statistics = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
    # The kernel drops these before it refuses memory.
    reclaimable = int(statistics.get(cache_name, 0))
    return int(limit[0]), max(int(usage[0]) - reclaimable, 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        # No such controller, or not readable: then it tells nothing.
        return []
