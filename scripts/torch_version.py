"""Prints the version of this interpreter's torch.

Exits with 1 when torch or Python does not fit, with 2 when they do and pip may not install beside
them, as in a distribution's own Python.
"""

import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_OLDEST_PYTHON = (3, 11)
_MANAGED = 2


def main() -> int:
    """Print a version that vramkit supports, and return the exit status."""
    if sys.version_info < _OLDEST_PYTHON:
        return 1
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from vramkit._build import BuildError, _torch

    try:
        found = version("torch")
        _torch.minor_of(found)
    except (PackageNotFoundError, BuildError):
        return 1
    print(found)
    in_venv = sys.prefix != sys.base_prefix
    marker = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return _MANAGED if marker.exists() and not in_venv else 0


if __name__ == "__main__":
    sys.exit(main())
