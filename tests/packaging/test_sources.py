"""Native sources and headers are found in folders of any depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from vramkit._build import _sources


def _add(path: Path, text: str = "int nothing;\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["base/deep/c.cpp", "pool/place/c.cpp", "loader/ring/c.cpp"])
def test_the_core_has_the_sources_of_nested_folders(tree: Path, name: str) -> None:
    assert _add(tree / name) in _sources.core_sources(tree)


def test_nested_adapters_are_adapters_and_not_core(tree: Path) -> None:
    (tree / "bind" / "torch").mkdir()
    main = (tree / "bind" / "adapter_cpu.cpp").rename(tree / "bind" / "torch" / "adapter_cpu.cpp")
    more = _add(tree / "bind" / "torch" / "adapter_cpu_more.cpp")
    assert _sources.adapter_sources(tree, "cpu")[-2:] == (main, more)
    assert not {main, more} & set(_sources.core_sources(tree))


def test_nested_ops_are_told_apart_by_their_names(tree: Path) -> None:
    cpu, cuda = (
        _add(tree / "ops" / "conv" / "relu.cpp"),
        _add(tree / "ops" / "conv" / "relu_cuda.cu"),
    )
    assert cpu in _sources.ops_cpu_sources(tree)
    assert _sources.ops_cuda_sources(tree) == (tree / "base" / "bytes.cpp", cuda)


@pytest.mark.parametrize("name", ["bind/version.h", "base/deep/new.h", "ops/conv/tile.cuh"])
def test_the_digest_covers_every_header_below_the_root(tree: Path, name: str) -> None:
    sources = _sources.adapter_sources(tree, "cpu")
    before = _sources.digest(tree, sources)
    assert _sources.digest(tree, sources) == before
    _add(tree / name, "#pragma once\n")
    assert _sources.digest(tree, sources) != before


def test_the_digest_tells_files_of_one_name_apart(tree: Path) -> None:
    first, second = _add(tree / "ops" / "a" / "x.h", "1"), _add(tree / "ops" / "b" / "x.h", "2")
    before = _sources.digest(tree, ())
    first.write_text("2")
    second.write_text("1")
    assert _sources.digest(tree, ()) != before
