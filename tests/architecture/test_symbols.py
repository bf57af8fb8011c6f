"""The core exports its C interface and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from vramkit._build import library_dir

ROOT = Path(__file__).resolve().parents[2]
_DECLARATION = re.compile(r"VRAMKIT_API\s[^;(]*?\b(vramkit_\w+)\s*\(")


def exported(nm_output: str) -> set[str]:
    """Return the symbols in the output of ``nm -D --defined-only``."""
    return {line.split()[-1].split("@")[0] for line in nm_output.splitlines() if line.strip()}


def declared(header: str) -> set[str]:
    """Return the functions that a header declares as exported."""
    return set(_DECLARATION.findall(header))


def _nm(path: Path) -> str:
    command = ["nm", "-D", "--defined-only", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_core_exports_its_interface_only() -> None:
    headers = (ROOT / "csrc" / "bind" / name for name in ("c/vramkit.h", "python/python.h"))
    interface = set().union(*(declared(header.read_text(encoding="utf-8")) for header in headers))
    assert len(interface) > 20
    assert exported(_nm(library_dir() / "libvramkit_core.so")) == interface


def test_every_library_exports_our_names_only() -> None:
    libraries = sorted(library_dir().glob("libvramkit_*.so"))
    assert libraries
    for path in libraries:
        foreign = {name for name in exported(_nm(path)) if not name.startswith("vramkit_")}
        assert foreign == set(), path.name


def test_the_guard_sees_foreign_symbols() -> None:
    output = "0000 T vramkit_alloc\n0001 W _ZNSt6vectorIiE4push@@V1\n"
    assert exported(output) == {"vramkit_alloc", "_ZNSt6vectorIiE4push"}


def test_the_guard_reads_declarations() -> None:
    header = (
        "VRAMKIT_API vramkit_status vramkit_a(int x,\n  int y);\nVRAMKIT_API void vramkit_b(void);"
    )
    assert declared(header) == {"vramkit_a", "vramkit_b"}
