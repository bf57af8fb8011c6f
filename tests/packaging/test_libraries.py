"""The native libraries that were built find all that they need of vramkit in themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import vramkit

_LIBRARIES = sorted((Path(vramkit.__file__).parent / "_lib").glob("*.so"))


@pytest.mark.parametrize("library", _LIBRARIES, ids=lambda path: path.name)
def test_no_function_of_vramkit_is_missing(library: Path) -> None:
    # The libraries load with what is missing from others, so only the first call would tell; those
    # for CUDA are not even loaded where there is no GPU.
    command = ["nm", "--dynamic", "--undefined-only", str(library)]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in names if "7vramkit" in name] == []
