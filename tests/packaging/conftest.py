"""A small tree of native sources in place of csrc/."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import builds

from vramkit._build import _first_use

_ADAPTER = """
#include "bind/version.h"
extern "C" __attribute__((visibility("default"))) const char* vramkit_adapter_torch_version(void) {
  return kVersion;
}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two sources that share a header, and adapters that say torch 2.13.0."""
    root = tmp_path / "csrc"
    (root / "base").mkdir(parents=True)
    (root / "bind").mkdir()
    (root / "ops").mkdir()
    (root / "base" / "one.h").write_text("inline int one() { return 1; }\n")
    (root / "base" / "bytes.cpp").write_text('#include "base/one.h"\nint a() { return one(); }\n')
    (root / "bind" / "b.cpp").write_text('extern "C" int vramkit_b() { return 2; }\n')
    (root / "bind" / "version.h").write_text('inline const char* kVersion = "2.13.0";\n')
    for kind in ("cpu", "fake", "node"):
        (root / "bind" / f"adapter_{kind}.cpp").write_text(_ADAPTER)
    return root


@pytest.fixture
def package(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose library folder is empty; returns that folder."""
    folder = tree.parent / "_lib"
    folder.mkdir()
    version = tree / "bind" / "version.h"
    version.write_text(f'inline const char* kVersion = "{torch.__version__}";\n')
    (tree / "ops" / "pattern.cpp").write_text("int nothing;\n")
    monkeypatch.setattr(_first_use, "source_root", lambda: tree)
    monkeypatch.setattr(_first_use, "library_dir", lambda: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree.parent / "cache"))
    builds.forget()
    return folder
