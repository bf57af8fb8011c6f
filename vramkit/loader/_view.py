"""A loader with some of its attributes replaced, for one iterator."""

from typing import Any


class View:
    """Shows a loader's attributes, and others instead of some.

    Args:
        loader: The loader.
        instead: The attributes that differ.
    """

    def __init__(self, loader: Any, **instead: Any) -> None:
        self._loader = loader
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)
