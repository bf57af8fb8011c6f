"""Builds an sdist and wheels from a clean copy, installs one, and uses it (needs network).

The isolated wheel has no torch to build for: its adapter is compiled at first use. The other one,
built beside the installed torch, carries everything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_WHEEL = "vramkit-*-py3-none-linux_*.whl"
_USE = """
import sys, torch, vramkit
assert vramkit.__file__.startswith(sys.argv[1]), vramkit.__file__
from vramkit._ops import count_mismatches, fill_pattern_
with vramkit.MemoryPool("64MiB") as pool:
    tensor = torch.empty(1000)
    fill_pattern_(tensor, seed=1)
    assert count_mismatches(tensor, seed=1).item() == 0
    assert pool.stats().live_bytes >= 4000
print("used", vramkit.__file__)
"""


def copy_sources(target: Path) -> None:
    """Copy what a clean clone holds, as far as a build looks at it."""
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "vramkit"):
        shutil.copytree(ROOT / name, target / name, ignore=built)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy2(ROOT / name, target / name)


def python(*arguments: str | Path, **variables: str | Path) -> None:
    """Run this interpreter with arguments, away from the checkout."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, cwd="/", env=environment, check=True)


def check_sdist(folder: Path) -> None:
    """Assert that the sdist holds what a build needs."""
    [sdist] = folder.glob("vramkit-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    missing = (wanted | {"LICENSE", "README.md", "pyproject.toml", "setup.py"}) - names
    assert not missing, f"{sdist.name} lacks {sorted(missing)}"


def check_wheel(folder: Path, libraries: set[str]) -> Path:
    """Assert which libraries the wheel holds, and return it."""
    [wheel] = folder.glob(_WHEEL)
    names = set(zipfile.ZipFile(wheel).namelist())
    found = {Path(name).name.split("_torch")[0] for name in names if name.endswith(".so")}
    assert found == libraries, f"{wheel.name} holds {sorted(found)}, not {sorted(libraries)}"
    data = "vramkit/estimate/_data/h100.json"
    assert {"vramkit/py.typed", data, "vramkit/_csrc/bind/torch/adapter_cpu.cpp"} <= names
    return wheel


def main() -> int:
    """Run the check; a failure is an exception."""
    os.environ["CUDA_HOME"] = "/nonexistent"  # the CUDA sources are compiled elsewhere
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        copy_sources(work / "clone")
        python("-m", "build", "--quiet", "--outdir", work / "isolated", work / "clone")
        check_sdist(work / "isolated")
        wheel = check_wheel(work / "isolated", {"libvramkit_core.so"})
        installed = work / "installed"
        python("-m", "pip", "install", "--quiet", "--no-deps", "--target", installed, wheel)
        python("-c", _USE, installed, PYTHONPATH=installed, XDG_CACHE_HOME=work / "cache")

        python(
            "-m", "build", "--wheel", "--no-isolation", "--outdir", work / "full", work / "clone"
        )
        adapters = {f"libvramkit_adapter_{kind}" for kind in ("cpu", "fake", "node")}
        everything = {"libvramkit_core.so", *adapters, "libvramkit_ops_cpu.so"}
        check_wheel(work / "full", everything)
    return 0


if __name__ == "__main__":
    sys.exit(main())
