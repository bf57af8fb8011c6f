"""How each native library is compiled and linked; the only place that names flags."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ._objects import Recipe
from ._sources import adapter_sources, core_sources, ops_cpu_sources
from ._toolchain import find_cxx, run
from ._torch import Torch

CORE_LIBRARY = "libvramkit_core.so"
OPS_CPU_LIBRARY = "libvramkit_ops_cpu.so"

_WARNINGS = ("-Wall", "-Wextra", "-Wundef", "-Wconversion", "-Wshadow")
_CODE = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread")
_SHARED = ("-shared", "-pthread", "-Wl,-z,defs", "-Wl,--as-needed")
# Every library named stays a needed one, and its symbols are found at load time.
SHARED_UNRESOLVED = ("-shared", "-pthread", "-Wl,--no-as-needed")
# The oldest torch whose stable interface the ops use: 2.11.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"


def adapter_name(kind: str, torch_minor: str) -> str:
    """Return the file name of the adapter of that kind for one torch minor version."""
    return f"libvramkit_adapter_{kind}_torch{torch_minor}.so"


def core_flags(root: Path) -> tuple[str, ...]:
    """Return the compiler and flags of the pool core; the native tests add to them."""
    return (find_cxx(), *_CODE, *warning_flags(), f"-I{root}", *user_flags())


def whole_program_flags() -> tuple[str, ...]:
    """Return the flags that let GCC inline across files: a third of the time of an allocation.

    Other compilers may lack the linker plug-in that they need for it, and do without.
    """
    if "Free Software Foundation" not in run([find_cxx(), "--version"]):
        return ()
    return ("-O3", "-flto=auto", "-fno-semantic-interposition")


def core(root: Path) -> Recipe:
    """Return the recipe of the pool core, which needs neither torch nor Python."""
    return Recipe(
        name=CORE_LIBRARY,
        root=root,
        sources=core_sources(root),
        compile=(*core_flags(root), *whole_program_flags()),
        link=(find_cxx(), *_SHARED, *whole_program_flags()),
        link_tail=("-ldl",),
        exports="vramkit_*",
    )


def adapter(root: Path, kind: str, torch: Torch) -> Recipe:
    """Return the recipe of an allocator adapter; it links to libc10, and to nothing of vramkit."""
    return Recipe(
        name=adapter_name(kind, torch.minor),
        root=root,
        sources=adapter_sources(root, kind),
        compile=(*core_flags(root), *torch_flags(torch)),
        link=(find_cxx(), *_shared(torch)),
        link_tail=(f"-L{torch.lib}", "-lc10"),
        exports="vramkit_*",
    )


def torch_adapter(root: Path, kind: str, torch: Torch) -> Recipe:
    """Return the recipe of an adapter that also links to libtorch_cpu.

    ``fake`` asks it for its hooks; ``node`` derives from its autograd and calls its operators.
    """
    plain = adapter(root, kind, torch)
    return replace(plain, link_tail=(*plain.link_tail, "-ltorch_cpu"))


def ops_cpu(root: Path, torch: Torch) -> Recipe:
    """Return the recipe of the CPU ops: one binary for torch 2.11 and later."""
    return Recipe(
        name=OPS_CPU_LIBRARY,
        root=root,
        sources=ops_cpu_sources(root),
        compile=(*core_flags(root), *torch_flags(torch), STABLE_ABI),
        link=(find_cxx(), *_shared(torch)),
        link_tail=(f"-L{torch.lib}", "-ltorch_cpu"),
        exports="vramkit_*",
    )


def _shared(torch: Torch) -> tuple[str, ...]:
    return SHARED_UNRESOLVED if torch.stubs else _SHARED


def torch_flags(torch: Torch) -> tuple[str, ...]:
    """Return the flags that find torch's headers, without their warnings."""
    include = torch.include
    return (
        f"-isystem{include}",
        f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}",
    )


def warning_flags() -> tuple[str, ...]:
    """Return the warnings; errors under ``VRAMKIT_WERROR=1``, as compilers differ."""
    return (*_WARNINGS, "-Werror") if warnings_are_errors() else _WARNINGS


def warnings_are_errors() -> bool:
    """Tell whether ``VRAMKIT_WERROR`` is set to anything but 0."""
    return os.environ.get("VRAMKIT_WERROR", "") not in ("", "0")


def user_flags() -> Sequence[str]:
    """Return the flags in ``CXXFLAGS``."""
    return shlex.split(os.environ.get("CXXFLAGS", ""))
