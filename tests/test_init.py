import pytest
from helpers.pools import run_script

import vramkit


def test_import_is_light() -> None:
    run_script(
        """
        import sys, vramkit
        heavy = {"torch", "numpy", "vramkit.pool", "vramkit._core"} & set(sys.modules)
        assert not heavy, heavy
        assert issubclass(vramkit.errors.CapacityError, ValueError)
        assert vramkit.units.parse_bytes("1KiB") == 1024
        assert vramkit.cli.main
        assert not {"torch", "numpy"} & set(sys.modules)
        """
    )


@pytest.mark.parametrize("name", ["cli", "errors", "pool", "simulate", "units"])
def test_public_modules_need_no_import_of_their_own(name: str) -> None:
    run_script(f"import vramkit; assert vramkit.{name}.__name__ == 'vramkit.{name}'")


def test_exceptions_have_one_home() -> None:
    assert not [name for name in vramkit.__all__ if name.endswith("Error")]
    with pytest.raises(AttributeError):
        _ = vramkit.VramkitError


def test_a_signal_handler_during_the_first_import_is_told_what_to_do() -> None:
    run_script(
        """
        import importlib, sys, types, vramkit
        # As a signal handler finds it that has interrupted the import.
        sys.modules["vramkit.pool"] = types.ModuleType("vramkit.pool")
        try:
            vramkit.MemoryPool
        except AttributeError as err:
            assert "use vramkit.MemoryPool once before it installs them" in str(err)
        else:
            raise AssertionError
        del sys.modules["vramkit.pool"]
        assert vramkit.MemoryPool
        """
    )


@pytest.mark.parametrize("name", vramkit.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(vramkit, name) is not None
    assert name in dir(vramkit)


def test_at_most_ten_public_names() -> None:
    assert len(vramkit.__all__) <= 10


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'vramkit' has no attribute 'Pool'"):
        _ = vramkit.Pool  # type: ignore[attr-defined]
