"""The packages of the extra ``demo``."""

import importlib

from vramkit.errors import MissingExtraError

_PACKAGES = ("sklearn", "matplotlib", "tqdm")


def require_packages() -> None:
    """Check that the extra ``demo`` is installed.

    Raises:
        MissingExtraError: One of its packages cannot be imported.
    """
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as err:
            raise MissingExtraError(
                f"the package {name!r} cannot be imported ({err}); the demo's packages come with "
                "the extra 'demo': pip install 'vramkit[demo]'"
            ) from err
