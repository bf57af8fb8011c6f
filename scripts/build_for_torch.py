"""Builds every library for a torch that is not installed here: ``MINOR FOLDER``.

For instance for a GPU machine without a compiler. Torch's headers come from where
check_torch_headers.py keeps them; stand-ins take the place of its libraries, whose symbols are then
found when the results are loaded. VRAMKIT_CUDA_ARCHS=90 builds the CUDA ops for one architecture.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from check_torch_headers import ROOT, headers_of

from vramkit._build import BuildError, _adapters, _cuda, _objects, _recipes, _toolchain, _torch


def recipes_for(torch: _torch.Torch, stub_dir: Path) -> list[_objects.Recipe]:
    """Return the recipes of all libraries; those of the CUDA ops only where nvcc is."""
    root = ROOT / "csrc"
    linked = replace(torch, lib=_cuda.make_stubs(stub_dir), stubs=True)
    recipes = [_recipes.core(root), _recipes.ops_cpu(root, linked)]
    recipes += [_adapters.recipe(root, kind, linked) for kind in _adapters.kinds(linked)]
    nvcc = _toolchain.find_nvcc()
    if nvcc is None:
        print("nvcc is not found: the CUDA ops are left out")
    else:
        recipes.append(_cuda.ops_cuda(root, linked, nvcc, stub_dir))
    return recipes


def main() -> int:
    """Build, print the paths, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("minor", help="the torch minor version, for instance 2.11")
    parser.add_argument("folder", type=Path, help="receives the libraries")
    arguments = parser.parse_args()
    objects = ROOT / "build" / "native" / f"torch-{arguments.minor}"
    try:
        torch = headers_of(arguments.minor)
        for recipe in recipes_for(torch, objects / "stubs"):
            print(_objects.build(recipe, arguments.folder.resolve(), objects), flush=True)
    except (BuildError, subprocess.CalledProcessError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
