"""Compilers are found, or their absence is explained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vramkit._build import (
    BuildError,
    _adapters,
    _cuda,
    _install,
    _objects,
    _recipes,
    _toolchain,
    _torch,
)

_PACKAGE_FOLDERS = _cuda._package_folders


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError) as caught:
        _toolchain.find_cxx()
    assert str(caught.value) == (
        "vramkit needs a C++20 compiler and found none (looked for g++, c++, clang++ in PATH); "
        "install one (Debian: apt-get install g++) or name one in the variable CXX"
    )


def test_a_named_compiler_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="looked for no-such-compiler in PATH"):
        _toolchain.find_cxx()


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_a_bad_number_of_jobs(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VRAMKIT_JOBS", text)
    with pytest.raises(BuildError, match=f"VRAMKIT_JOBS must be a positive number, got '{text}'"):
        _toolchain.job_count()


def test_the_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMKIT_JOBS", "3")
    assert _toolchain.job_count() == 3
    monkeypatch.delenv("VRAMKIT_JOBS")
    assert _toolchain.job_count() >= 1


def test_cuda_home_decides_about_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _toolchain.find_nvcc() is None
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho compute_80\necho compute_90\n")
    nvcc.chmod(0o755)
    assert _toolchain.find_nvcc() == str(nvcc)


def _fake_nvcc(folder: Path) -> str:
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\necho compute_75\necho compute_80\necho compute_90\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def test_release_architectures_are_those_that_nvcc_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VRAMKIT_CUDA_ARCHS", raising=False)
    assert _cuda.wanted_archs(_fake_nvcc(tmp_path)) == ("80", "90")


@pytest.mark.parametrize(
    ("text", "archs"), [("90", ("90",)), ("80,90a", ("80", "90a")), ("80 120", ("80", "120"))]
)
def test_named_architectures(
    monkeypatch: pytest.MonkeyPatch, text: str, archs: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VRAMKIT_CUDA_ARCHS", text)
    assert _cuda.wanted_archs("unused") == archs


def test_bad_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMKIT_CUDA_ARCHS", "sm_90")
    with pytest.raises(BuildError, match="must look like 90 or 80,90, got 'sm_90'"):
        _cuda.wanted_archs("unused")


def test_cuda_ops_hold_every_architecture_and_ptx_of_the_newest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tree: Path
) -> None:
    monkeypatch.delenv("VRAMKIT_CUDA_ARCHS", raising=False)
    torch = _torch.Torch("2.13.0", tmp_path / "include")
    recipe = _cuda.ops_cuda(tree, torch, _fake_nvcc(tmp_path), tmp_path / "stubs")
    assert [flag for flag in recipe.compile if "gencode" in flag] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def _cuda_headers(folder: Path) -> Path:
    include = folder / "include"
    (include / "crt").mkdir(parents=True)
    (include / "cuda_runtime_api.h").write_text("")
    (include / "crt" / "host_defines.h").write_text("")
    return include


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's headers are nowhere but where a test puts them."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(_cuda, "find_nvcc", lambda: None)
    monkeypatch.setattr(_cuda, "_SYSTEM_INCLUDE", Path("/nowhere/include"))
    monkeypatch.setattr(_cuda, "_package_folders", list)


def test_cuda_headers_under_cuda_home(
    no_cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    include = _cuda_headers(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _cuda.cuda_include() == include


def test_cuda_headers_of_a_toolkit_whose_nvcc_is_started_by_a_script(
    no_cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    include = _cuda_headers(tmp_path / "cuda")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '#$ _HERE_=x'\necho '#$ TOP={tmp_path}/cuda/bin/..'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(_cuda, "find_nvcc", lambda: str(nvcc))
    assert _cuda.cuda_include() == include


def test_cuda_headers_of_python_packages(
    no_cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    include = _cuda_headers(tmp_path / "nvidia" / "cu13")
    monkeypatch.setattr(_cuda, "_package_folders", _PACKAGE_FOLDERS)
    monkeypatch.syspath_prepend(tmp_path)
    assert _cuda.cuda_include() == include


def test_half_of_cudas_headers_are_not_enough(
    no_cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    include = _cuda_headers(tmp_path)
    (include / "crt" / "host_defines.h").unlink()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError) as caught:
        _cuda.cuda_include()
    assert str(caught.value) == (
        "the CUDA allocator adapter needs CUDA's headers cuda_runtime_api.h and "
        f"crt/host_defines.h and found them in none of: {include}, /nowhere/include; install "
        "CUDA's toolkit and set CUDA_HOME to it"
    )


@pytest.mark.parametrize("configured", [True, False])
def test_macros_that_a_torch_may_lack(
    configured: bool, no_cuda: None, monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    (tree / "bind" / "adapter_cuda.cpp").write_text("int nothing;\n")
    _cuda_headers(tree)
    monkeypatch.setenv("CUDA_HOME", str(tree))
    macros = tree / "torch" / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    if configured:
        macros.parent.mkdir(parents=True)
        macros.write_text("")
    torch = _torch.Torch("2.11.0", tree / "torch", has_cuda=True)
    recipe = _adapters.recipe(tree, "cuda", torch)
    assert ("-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE" in recipe.compile) is not configured
    assert f"-isystem{tree / 'include'}" in recipe.compile


def test_an_adapter_for_an_absent_torch_names_its_libraries(
    no_cuda: None, monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    unresolved = "int torchs();\nint ours() { return torchs(); }\n"
    (tree / "bind" / "adapter_cuda.cpp").write_text(unresolved)
    _cuda_headers(tree)
    monkeypatch.setenv("CUDA_HOME", str(tree))
    stubs = _cuda.make_stubs(tree / "stubs")
    torch = _torch.Torch("2.11.0", tree / "torch", lib=stubs, stubs=True, has_cuda=True)
    recipe = _adapters.recipe(tree, "cuda", torch)
    built = _objects.build(recipe, tree / "lib", tree / "objects")
    assert built.name == "libvramkit_adapter_cuda_torch2.11.so"
    dynamic = _toolchain.run(["readelf", "-d", str(built)])
    assert re.findall(r"NEEDED.*\[(libc10.*)\]", dynamic) == ["libc10.so", "libc10_cuda.so"]


def test_warnings_are_errors_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMKIT_WERROR", "0")
    assert "-Werror" not in _recipes.warning_flags()
    monkeypatch.setenv("VRAMKIT_WERROR", "1")
    assert "-Werror" in _recipes.warning_flags()


@pytest.mark.parametrize("version", ["2.10.1", "2.16.0", "3.0.0+cpu"])
def test_an_unsupported_torch(version: str) -> None:
    with pytest.raises(BuildError) as caught:
        _torch.minor_of(version)
    assert str(caught.value) == (
        f"torch {version} is not supported: vramkit needs at least 2.11 and less than 2.16; "
        "install one of those, for instance pip install 'torch==2.13.*'"
    )


@pytest.mark.parametrize(("version", "minor"), [("2.11.0", "2.11"), ("2.15.2+cu130", "2.15")])
def test_the_minor_version(version: str, minor: str) -> None:
    assert _torch.minor_of(version) == minor


def test_what_is_no_version() -> None:
    with pytest.raises(BuildError, match="cannot read torch's version 'main'"):
        _torch.minor_of("main")


@pytest.fixture
def small_install(monkeypatch: pytest.MonkeyPatch, tree: Path) -> Path:
    """An installation that builds the small tree for the real torch, and has no nvcc."""
    monkeypatch.setattr(_install, "source_root", lambda: tree)
    monkeypatch.setenv("CUDA_HOME", str(tree))
    (tree / "ops" / "pattern.cpp").write_text("int nothing;\n")
    return tree.parent


def test_what_is_left_out_is_said(small_install: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = _install.build_all(small_install / "lib", small_install / "objects")
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert lines == ["vramkit: nvcc is not found: the CUDA parts are left out"]
    assert [path.name.split("_torch")[0] for path in built] == [
        "libvramkit_core.so",
        "libvramkit_adapter_cpu",
        "libvramkit_adapter_fake",
        "libvramkit_adapter_node",
        "libvramkit_ops_cpu.so",
    ]


def test_a_cuda_adapter_that_cannot_be_built_is_left_to_its_first_use(
    small_install: Path,
    no_cuda: None,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tree / "bind" / "adapter_cuda.cpp").write_text("int nothing;\n")
    found = _torch.find_torch()
    assert found is not None
    monkeypatch.setattr(_install, "find_torch", lambda: replace(found, has_cuda=True))
    built = _install.build_all(small_install / "lib", small_install / "objects")
    assert len(built) == 5
    said = capsys.readouterr().out
    assert "vramkit: the CUDA adapter is left to its first use: the CUDA allocator adapter" in said


def test_without_torch_only_the_core_is_built(
    small_install: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_install, "find_torch", lambda: None)
    built = _install.build_all(small_install / "lib", small_install / "objects")
    assert [path.name for path in built] == ["libvramkit_core.so"]
    assert "what is bound to it is built at first use" in capsys.readouterr().out
