"""Adapters: in the package, or built once into the cache; never one for another torch."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import builds

from vramkit._build import BuildError, __main__, _first_use, _recipes, _sources, _torch

ROOT = Path(__file__).resolve().parents[2]
_VERSION = torch.__version__
_MINOR = _torch.minor_of(_VERSION)
_NAME = f"libvramkit_adapter_cpu_torch{_MINOR}.so"


def _no_compiler() -> str:
    raise BuildError("no compiler")


def test_the_checkout_has_an_adapter_for_this_torch() -> None:
    path = _first_use.adapter_path("cpu")
    assert path.name == _NAME
    assert _torch.minor_of(_ask(path)) == _MINOR


def _ask(path: Path) -> str:
    ask = ctypes.CDLL(str(path)).vramkit_adapter_torch_version
    ask.restype = ctypes.c_char_p
    answer: bytes = ask()
    return answer.decode()


def test_first_use_builds_into_the_cache(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _first_use.adapter_path("cpu")
    assert path.name == _NAME
    assert path.is_relative_to(package.parent / "cache" / "vramkit")
    assert f"torch{_VERSION}" in path.parent.name
    assert capsys.readouterr().err == f"vramkit: compiling {path}, once\n"
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([".lock", _NAME])


def test_the_second_process_needs_no_compiler(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _first_use.adapter_path("cpu")
    builds.forget()
    monkeypatch.setattr(_recipes, "find_cxx", _no_compiler)
    assert _first_use.adapter_path("cpu") == path


def test_a_package_with_an_adapter_needs_no_compiler(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builds.adapter_for(package, _VERSION)
    monkeypatch.setattr(_recipes, "find_cxx", _no_compiler)
    assert _first_use.adapter_path("cpu") == path


def test_changed_sources_are_built_again(package: Path, tree: Path) -> None:
    before = _first_use.adapter_path("cpu")
    version = tree / "bind" / "version.h"
    version.write_text(version.read_text() + "// changed\n")
    builds.forget()
    assert _first_use.adapter_path("cpu").parent != before.parent


def test_an_adapter_for_another_torch_is_refused(package: Path) -> None:
    path = builds.adapter_for(package, "2.1.0")
    with pytest.raises(BuildError) as caught:
        _first_use.adapter_path("cpu")
    assert str(caught.value) == (
        f"{path} was built for torch 2.1.0; build one for torch {_VERSION} with: "
        f"{sys.executable} -m vramkit._build"
    )


@pytest.mark.parametrize(
    "code", ["int nothing;", 'extern "C" int gone(); int x = gone();'], ids=["silent", "unresolved"]
)
def test_a_file_that_is_no_adapter_is_refused(package: Path, code: str) -> None:
    path = builds.library(package, _NAME, code)
    with pytest.raises(BuildError, match=f"{path} .*; build one for torch .* -m vramkit._build"):
        _first_use.adapter_path("cpu")


def test_a_rebuild_replaces_a_wrong_adapter(
    package: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builds.adapter_for(package, "2.1.0")
    assert __main__.main() == 0
    path = _first_use.adapter_path("cpu")
    assert str(path) in capsys.readouterr().out
    assert path.is_relative_to(package.parent / "cache")


def test_a_failed_rebuild_is_one_line_and_a_status(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_recipes, "find_cxx", _no_compiler)
    assert __main__.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: no compiler"


def test_an_unwritable_cache_is_explained(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = package.parent / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(
        BuildError, match=r"cannot use the cache .*XDG_CACHE_HOME.*--no-build-isolation"
    ):
        _first_use.adapter_path("cpu")


def test_an_adapter_may_have_several_sources(package: Path, tree: Path) -> None:
    source = tree / "bind" / "adapter_cpu.cpp"
    source.write_text("const char* more();\n" + source.read_text().replace("kVersion", "more()"))
    more = tree / "bind" / "adapter_cpu_more.cpp"
    more.write_text(f'const char* more() {{ return "{_VERSION}"; }}\n')
    assert _ask(_first_use.adapter_path("cpu")) == _VERSION


def test_a_torch_without_cuda_has_no_cuda_adapter(
    package: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "bind" / "adapter_cuda.cpp").write_text("int nothing;\n")
    without = _torch.Torch("2.13.0+cpu", tree / "include")
    monkeypatch.setattr(_first_use, "find_torch", lambda: without)
    with pytest.raises(BuildError, match=r"torch 2\.13\.0\+cpu has no CUDA, .* install a torch"):
        _first_use.adapter_path("cuda")


def test_an_unknown_adapter(package: Path) -> None:
    known = r"\['adapter_cpu', 'adapter_fake', 'adapter_node'\]"
    with pytest.raises(BuildError, match=rf"no adapter for 'tpu': .* there are {known}"):
        _first_use.adapter_path("tpu")


def test_two_processes_compile_once(package: Path, tree: Path) -> None:
    code = (
        "import pathlib, sys; from vramkit._build import _first_use as f\n"
        f"f.source_root = lambda: pathlib.Path({str(tree)!r})\n"
        f"f.library_dir = lambda: pathlib.Path({str(package)!r})\n"
        "print(f.adapter_path('cpu'))"
    )
    command = [sys.executable, "-c", code]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [subprocess.Popen(command, **options) for _ in range(2)]
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert sum("compiling" in err for _, err in answers) == 1


def test_sources_that_are_gone_are_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_sources, "_PACKAGE", tmp_path / "vramkit")
    with pytest.raises(BuildError, match=r"native sources are missing from .*_csrc; install"):
        _sources.source_root()
