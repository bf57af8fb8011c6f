import subprocess
from pathlib import Path

import pytest

from vramkit._core import _library
from vramkit.errors import NativeLibraryError, VramkitError


def test_a_missing_library_says_how_to_build(tmp_path: Path) -> None:
    with pytest.raises(NativeLibraryError) as caught:
        _library.load_library(tmp_path / "libvramkit_core.so")
    text = str(caught.value)
    assert f"cannot load the native core {tmp_path}/libvramkit_core.so" in text
    assert "make build" in text
    assert "pip install --force-reinstall" in text


def test_a_library_of_another_interface_is_refused(tmp_path: Path) -> None:
    functions = [*_library.STATUS_FUNCTIONS, *_library.OTHER_FUNCTIONS]
    functions.remove("vramkit_core")
    source, built = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "static unsigned api[32] = {77, 128};\nvoid* vramkit_core(void) { return api; }\n"
        + "".join(f"int {name}(void) {{ return 0; }}\n" for name in functions)
    )
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    needed = f"has interface version 77, .* needs {_library.s.ABI_VERSION}"
    with pytest.raises(NativeLibraryError, match=needed):
        _library.load_library(built)


def test_every_failing_status_has_its_own_exception() -> None:
    statuses = set(_library.s.Status) - {_library.s.Status.OK, _library.s.Status.NOT_ROUTED}
    assert set(_library.EXCEPTIONS) == statuses
    exceptions = list(_library.EXCEPTIONS.values())
    assert len(set(exceptions)) == len(statuses)
    assert all(issubclass(exception, VramkitError) for exception in exceptions)
