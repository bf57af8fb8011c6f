"""Builds vramkit's native libraries: at install (setup.py), for tests, and at first use.

Uses the standard library alone and nothing else of vramkit: setup.py loads this package before
anything is installed.
"""

from __future__ import annotations

from ._errors import BuildError
from ._first_use import adapter_path, ops_cpu_path
from ._install import build_all
from ._sources import library_dir

__all__ = ["BuildError", "adapter_path", "build_all", "library_dir", "ops_cpu_path"]
