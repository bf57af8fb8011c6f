"""``import vramkit`` starts nothing and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_HEAVY = ("torch", "numpy", "matplotlib", "sklearn", "setuptools")
_PROBE = """
import sys
maps = open("/proc/self/maps").read()
names = [name for name in {heavy!r} if name in sys.modules]
names += [name for name in ("libcuda.so", "libvramkit") if name in maps]
torch = sys.modules.get("torch")
if torch is not None and torch.cuda.is_initialized():
    names.append("a CUDA context")
print(",".join(names))
"""


def started_by(code: str) -> set[str]:
    """Return what a fresh interpreter has imported, mapped and started after some code."""
    probe = code + _PROBE.format(heavy=_HEAVY)
    command = [sys.executable, "-c", probe]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(filter(None, done.stdout.strip().split(",")))


@pytest.mark.parametrize(
    "name",
    [
        *("vramkit", "vramkit.errors", "vramkit.units", "vramkit.cli", "vramkit.estimate"),
        "vramkit.estimate.config",
    ],
)
def test_importing_is_light(name: str) -> None:
    assert started_by(f"import {name}") == set()


def test_the_pool_class_starts_no_driver() -> None:
    started = started_by("import vramkit; vramkit.MemoryPool")
    assert started.isdisjoint({"libcuda.so", "a CUDA context"})


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_the_guard_sees_heavy_imports(name: str) -> None:
    assert name in started_by(f"import {name}")


def test_the_guard_sees_libraries() -> None:
    code = f"import ctypes; ctypes.CDLL({str(ROOT / 'vramkit' / '_lib' / 'libvramkit_core.so')!r})"
    assert started_by(code) == {"libvramkit"}
