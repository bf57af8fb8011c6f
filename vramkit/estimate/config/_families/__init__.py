"""How each ``model_type`` is read."""

from __future__ import annotations

from collections.abc import Callable

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import Architecture
from vramkit.estimate.config._families import (
    _deepseek,
    _dense,
    _gemma,
    _gpt2,
    _hybrid,
    _llama4,
    _mixtures,
)
from vramkit.estimate.config._fields import Fields

_READERS: dict[str, Callable[[Fields], Architecture]] = {
    **_dense.READERS,
    **_deepseek.READERS,
    **_gemma.READERS,
    **_gpt2.READERS,
    **_hybrid.READERS,
    **_llama4.READERS,
    **_mixtures.READERS,
}


def model_types() -> tuple[str, ...]:
    """Return every ``model_type`` that can be read."""
    return tuple(sorted(_READERS))


def read_architecture(fields: Fields) -> Architecture:
    """Read a model.

    Raises:
        InvalidArgumentError: The model's type is not known, or its configuration is not whole.
    """
    model_type = fields.text("model_type")
    reader = _READERS.get(model_type)
    if reader is None:
        raise InvalidArgumentError(
            f"{fields.where}: models of type {model_type!r} cannot be read, because how their "
            "layers, weights and caches are built is not known here; known are "
            f"{', '.join(model_types())}"
        )
    return reader(fields)
