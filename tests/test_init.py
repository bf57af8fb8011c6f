import pytest
from helpers.pools import run_script

import vramkit


def test_import_is_light() -> None:
    run_script(
        """
        import sys, vramkit
        heavy = {"torch", "numpy", "vramkit.pool", "vramkit._core"} & set(sys.modules)
        assert not heavy, heavy
        assert vramkit.VramkitError is vramkit.errors.VramkitError
        assert "torch" not in sys.modules
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
