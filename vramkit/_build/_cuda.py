"""The CUDA ops: nvcc's flags, and stand-ins for torch libraries that a build machine lacks."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ._errors import BuildError
from ._objects import Recipe
from ._recipes import STABLE_ABI, torch_flags, warnings_are_errors
from ._sources import ops_cuda_sources
from ._toolchain import find_cxx, job_count, run
from ._torch import Torch

OPS_CUDA_LIBRARY = "libvramkit_ops_cuda.so"
RELEASE_ARCHS = ("80", "86", "89", "90", "100", "120")
_TORCH_LIBRARIES = ("torch_cpu", "torch_cuda", "c10")


def wanted_archs(nvcc: str) -> tuple[str, ...]:
    """Return ``VRAMKIT_CUDA_ARCHS`` (``90`` or ``80,90``), else a release's that this nvcc knows.

    Raises:
        BuildError: The variable holds something else.
    """
    text = os.environ.get("VRAMKIT_CUDA_ARCHS", "").strip()
    if not text:
        known = run([nvcc, "--list-gpu-arch"]).split()
        return tuple(arch for arch in RELEASE_ARCHS if f"compute_{arch}" in known)
    archs = tuple(re.split(r"[\s,;]+", text))
    if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        raise BuildError(f"VRAMKIT_CUDA_ARCHS must look like 90 or 80,90, got {text!r}")
    return archs


def ops_cuda(root: Path, torch: Torch, nvcc: str, stub_dir: Path) -> Recipe:
    """Return the recipe of the CUDA ops.

    They name torch's libraries as needed ones, so that their symbols are found at load time; the
    stubs stand in for them, as a torch without CUDA has no libtorch_cuda.so.
    """
    cxx = find_cxx()
    return Recipe(
        name=OPS_CUDA_LIBRARY,
        root=root,
        sources=ops_cuda_sources(root),
        compile=(
            *(nvcc, "-ccbin", cxx, "-std=c++20", "-O3", "--threads", str(job_count())),
            # No -Wundef: CUDA's own headers, which nvcc includes first, do not pass it.
            *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wshadow"),
            *(("-Werror", "all-warnings") if warnings_are_errors() else ()),
            *_arch_flags(wanted_archs(nvcc)),
            *(f"-I{root}", *_nvcc_spelling(torch_flags(torch)), STABLE_ABI, "-DUSE_CUDA"),
        ),
        link=(nvcc, "-ccbin", cxx, "-shared", "-cudart", "static"),
        link_tail=(
            *("-Xlinker", "--no-as-needed", f"-L{make_stubs(stub_dir)}"),
            *(f"-l{name}" for name in _TORCH_LIBRARIES),
        ),
        exports="vramkit_*",
    )


def make_stubs(folder: Path) -> Path:
    """Make empty shared libraries that carry the names of torch's, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TORCH_LIBRARIES:
        file = f"lib{name}.so"
        if not (folder / file).exists():
            flags = ["-shared", "-nostdlib", f"-Wl,-soname,{file}", "-x", "c", "/dev/null"]
            run([find_cxx(), *flags, "-o", str(folder / file)])
    return folder


def _arch_flags(archs: tuple[str, ...]) -> list[str]:
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    newest = archs[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def _nvcc_spelling(flags: tuple[str, ...]) -> list[str]:
    return [flag.replace("-isystem", "-isystem=") for flag in flags]
