"""Compilers are found, or their absence is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from vramkit._build import BuildError, _cuda, _install, _recipes, _toolchain, _torch


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
        "libvramkit_ops_cpu.so",
    ]


def test_without_torch_only_the_core_is_built(
    small_install: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_install, "find_torch", lambda: None)
    built = _install.build_all(small_install / "lib", small_install / "objects")
    assert [path.name for path in built] == ["libvramkit_core.so"]
    assert "what is bound to it is built at first use" in capsys.readouterr().out
