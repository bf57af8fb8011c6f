"""What runs with CUDA: nvcc's flags, CUDA's headers, and stand-ins for libraries of torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from . import _recipes
from ._errors import BuildError
from ._objects import Recipe
from ._recipes import STABLE_ABI, torch_flags, warnings_are_errors
from ._sources import ops_cuda_sources
from ._toolchain import find_cxx, find_nvcc, job_count, run
from ._torch import Torch

OPS_CUDA_LIBRARY = "libvramkit_ops_cuda.so"
# Code for 8.0 also runs on 8.6 and 8.9.
RELEASE_ARCHS = ("80", "90", "100", "120")
_OPS_NEED = ("torch_cpu", "torch_cuda", "c10")
_STUBS = (*_OPS_NEED, "c10_cuda")
_SYSTEM_INCLUDE = Path("/usr/local/cuda/include")
# The first one includes the second, which a package of its own may hold.
_RUNTIME_HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h")


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
            # -fmad=false: sums and products are rounded as on the CPU, whose results are the same.
            *(nvcc, "-ccbin", cxx, "-std=c++20", "-O3", "-fmad=false"),
            *("--threads", str(job_count())),
            # No -Wundef: CUDA's own headers, which nvcc includes first, do not pass it.
            *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wshadow"),
            *(("-Werror", "all-warnings") if warnings_are_errors() else ()),
            *_arch_flags(wanted_archs(nvcc)),
            *(f"-I{root}", *_nvcc_spelling(torch_flags(torch)), STABLE_ABI, "-DUSE_CUDA"),
        ),
        link=(nvcc, "-ccbin", cxx, "-shared", "-cudart", "static"),
        link_tail=(
            *("-Xlinker", "--no-as-needed", f"-L{make_stubs(stub_dir)}"),
            *(f"-l{name}" for name in _OPS_NEED),
        ),
        exports="vramkit_*",
    )


def adapter(root: Path, torch: Torch) -> Recipe:
    """Return the recipe of the CUDA allocator adapter.

    CUDA's runtime is not linked: libc10_cuda brings the one that torch uses.

    Raises:
        BuildError: CUDA's runtime headers are not found.
    """
    plain = _recipes.adapter(root, "cuda", torch)
    macros = torch.include / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    return replace(
        plain,
        compile=(
            *plain.compile,
            f"-isystem{cuda_include()}",
            *(() if macros.is_file() else ("-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",)),
        ),
        link=(find_cxx(), *_recipes.SHARED_UNRESOLVED),
        link_tail=(*plain.link_tail, "-lc10_cuda"),
    )


def cuda_include() -> Path:
    """Return the folder of CUDA's runtime headers.

    Looks into ``$CUDA_HOME``, NVIDIA's Python packages, nvcc's toolkit, and /usr/local/cuda.

    Raises:
        BuildError: They are in none of these.
    """
    candidates = list(_include_candidates())
    for folder in candidates:
        if all((folder / header).is_file() for header in _RUNTIME_HEADERS):
            return folder
    looked_in = ", ".join(map(str, candidates))
    raise BuildError(
        f"the CUDA allocator adapter needs CUDA's headers {' and '.join(_RUNTIME_HEADERS)} and "
        f"found them in none of: {looked_in}; install CUDA's toolkit and set CUDA_HOME to it"
    )


def _include_candidates() -> Iterator[Path]:
    home = os.environ.get("CUDA_HOME", "").strip()
    if home:
        yield Path(home) / "include"
    for folder in _package_folders():
        yield from sorted(folder.glob("*/include"), reverse=True)
    nvcc = find_nvcc()
    if nvcc is not None:
        # Asked, as what is in PATH may be a script that starts the real one.
        top = re.search(r"^#\$ TOP=(.+)$", run([nvcc, "--dryrun", "-E", "x.cu"]), re.MULTILINE)
        if top is not None:
            yield (Path(top[1]) / "include").resolve()
    yield _SYSTEM_INCLUDE


def _package_folders() -> list[Path]:
    packages = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in (packages and packages.submodule_search_locations) or ()]


def make_stubs(folder: Path) -> Path:
    """Make empty shared libraries that carry the names of torch's, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _STUBS:
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
