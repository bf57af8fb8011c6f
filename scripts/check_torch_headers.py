"""Compiles what is bound to torch's headers against each supported torch: ``[MINOR ...]``.

The headers come from the macOS wheels, which hold the same ones as the Linux wheels in a fraction
of the size; they are kept in .cache/torch-headers, so only the first run needs the network. Exits
with 1 when a compile failed, else with 75 when some headers could not be fetched.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vramkit._build import BuildError, _adapters, _recipes, _toolchain, _torch  # noqa: E402

_CACHE = ROOT / ".cache" / "torch-headers"
_MINORS = tuple(f"2.{minor}" for minor in range(_torch.OLDEST[1], _torch.FIRST_UNSUPPORTED[1]))
_NO_NETWORK = 75  # sysexits.h: a temporary failure, try again later
_PARTS = ("torch/include/ATen/", "torch/include/c10/", "torch/include/torch/")
_PLATFORMS = ("macosx_11_0_arm64", "macosx_12_0_arm64", "macosx_14_0_arm64")


def headers_of(minor: str) -> _torch.Torch:
    """Return the newest torch of a minor version, fetching its headers when they are not here."""
    folder = _CACHE / minor
    done = folder / "version"
    if not (done.is_file() and all((folder / part).is_dir() for part in _PARTS)):
        with tempfile.TemporaryDirectory() as download:
            wheel = _download(minor, Path(download))
            with zipfile.ZipFile(wheel) as archive:
                wanted = [name for name in archive.namelist() if name.startswith(_PARTS)]
                archive.extractall(folder, wanted)
            done.write_text(wheel.name.split("-")[1], encoding="utf-8")
    version = done.read_text(encoding="utf-8")
    return _torch.Torch(version, folder / "torch" / "include", has_cuda=True)


def _download(minor: str, folder: Path) -> Path:
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12", *platforms]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}"]
    subprocess.run([*command, f"torch=={minor}.*"], check=True)
    return next(folder.glob("torch-*.whl"))


def check(torch: _torch.Torch) -> None:
    """Compile every source that is bound to torch's headers, without keeping the result."""
    root = ROOT / "csrc"
    adapters = [_adapters.recipe(root, kind, torch) for kind in _adapters.kinds(torch)]
    for recipe in (*adapters, _recipes.ops_cpu(root, torch)):
        for source in recipe.sources:
            _toolchain.run([*recipe.compile, "-fsyntax-only", str(source)])


def main(minors: list[str]) -> int:
    """Check the named minor versions, by default all, and return the exit status."""
    failed, missing = [], []
    for minor in minors or _MINORS:
        try:
            torch = headers_of(minor)
            check(torch)
            print(f"torch {torch.version}: ok", flush=True)
        except subprocess.CalledProcessError as err:
            missing.append(minor)
            print(f"torch {minor}: no headers to be had: {err}", file=sys.stderr, flush=True)
        except BuildError as err:
            failed.append(minor)
            print(f"torch {minor}: FAILED: {err}", file=sys.stderr, flush=True)
    if failed:
        return 1
    return _NO_NETWORK if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
