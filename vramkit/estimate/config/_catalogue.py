"""The models that come with vramkit: their configurations, each with its source."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vramkit.errors import InvalidArgumentError

_FOLDER = Path(__file__).parent / "catalogue"


@dataclass(frozen=True)
class CatalogueEntry:
    """A model of the catalogue.

    Attributes:
        name: Its name, for ``read_model``.
        title: Its name for people.
        source: Address of its ``config.json``; the catalogue has the fields that matter here.
        compiled: Date on which the entry was made, as ``YYYY-MM-DD``.
        published_parameters: Number of parameters in the published checkpoint, without layers for
            multi-token prediction.
        published_note: Where that number is from.
    """

    name: str
    title: str
    source: str
    compiled: str
    published_parameters: int
    published_note: str


def catalogue() -> tuple[CatalogueEntry, ...]:
    """Return the models that can be named, in the order of their names.

    >>> from vramkit.estimate.config import catalogue
    >>> [entry.title for entry in catalogue() if entry.name == "mixtral-8x7b"]
    ['Mixtral 8x7B']
    """
    return tuple(_entry(path.stem)[0] for path in sorted(_FOLDER.glob("*.json")))


def configuration_of(name: str) -> dict[str, Any] | None:
    """Return the configuration of a name, or ``None`` where the catalogue has no such model.

    Args:
        name: A name; case, and an organisation before a slash, do not matter.
    """
    plain = name.rsplit("/", 1)[-1].lower()
    known = {path.stem for path in _FOLDER.glob("*.json")}
    return dict(_entry(plain)[1]) if plain in known else None


def unknown(name: str) -> InvalidArgumentError:
    """The error for a name that is neither a file nor in the catalogue."""
    known = sorted(path.stem for path in _FOLDER.glob("*.json"))
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return InvalidArgumentError(
        f"{name!r} is neither a config.json, nor a folder with one, nor one of the "
        f"{len(known)} models of the catalogue{hint} (vramkit estimate --list prints them, "
        "vramkit.estimate.config.catalogue() returns them; a model of the Hugging Face hub is "
        "written 'organisation/model')"
    )


@lru_cache(maxsize=256)
def _entry(name: str) -> tuple[CatalogueEntry, dict[str, Any]]:
    values = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    config = values.pop("config")
    return CatalogueEntry(**values), config
