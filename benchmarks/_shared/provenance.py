"""Where a result comes from: commit, machine, versions."""

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Provenance:
    """What a row has to carry so that it can be compared with another one."""

    commit: str
    dirty: bool
    date: str
    device: str
    torch: str | None
    cuda: str | None
    driver: str | None
    kernel: str
    python: str

    @property
    def label(self) -> str:
        """The commit, marked when the tree had uncommitted changes."""
        return f"{self.commit}-dirty" if self.dirty else self.commit

    @property
    def device_slug(self) -> str:
        """The device as a part of a file name: no dashes, which separate the name's parts."""
        return re.sub(r"[^a-z0-9]+", "_", self.device.lower()).strip("_")


def provenance() -> Provenance:
    """Collect the origin of results measured now on the CPU: no CUDA version, no driver."""
    return Provenance(
        commit=_git("rev-parse", "--short=12", "HEAD"),
        dirty=_is_dirty(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=_cpu(),
        torch=_torch_version(),
        cuda=None,
        driver=None,
        kernel=platform.release(),
        python=platform.python_version(),
    )


def gpu_provenance(commit: str | None = None) -> Provenance:
    """Collect the origin of results measured now on the first GPU.

    Args:
        commit: The label of the commit where the tree was copied without its repository; it ends
            in ``-dirty`` when the tree had uncommitted changes.

    Raises:
        RuntimeError: nvidia-smi finds no GPU.
    """
    import torch

    name, driver = _gpu()
    origin = replace(provenance(), device=name, driver=driver, cuda=torch.version.cuda)
    if commit is None:
        return origin
    return replace(origin, commit=commit.removesuffix("-dirty"), dirty=commit.endswith("-dirty"))


def commit_label() -> str:
    """Name the commit of this tree, marked when there are uncommitted changes."""
    return provenance().label


def measure_this_tree() -> None:
    """Let ``import vramkit`` find this tree, not an installed copy: rows carry its commit."""
    sys.path.insert(0, str(ROOT))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "uncommitted"


def _is_dirty() -> bool:
    # Result files are what a benchmark itself adds: they do not change the code that was measured.
    return bool(_git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"))


def _gpu() -> tuple[str, str]:
    question = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as err:
        raise RuntimeError(f"no GPU to measure on: nvidia-smi does not answer ({err})") from err
    name, driver = answer.splitlines()[0].split(", ")
    return name, driver


def _cpu() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model} x{len(os.sched_getaffinity(0))}"


def _torch_version() -> str | None:
    # Not from torch itself: a benchmark of the bare core need not load it.
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
