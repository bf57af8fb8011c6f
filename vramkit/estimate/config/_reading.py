"""Finds a model's configuration: a file, a folder, a dict, the catalogue, or the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, MissingExtraError
from vramkit.estimate.config._architecture import Architecture
from vramkit.estimate.config._catalogue import configuration_of, unknown
from vramkit.estimate.config._families import read_architecture
from vramkit.estimate.config._fields import Fields

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PATH_STARTS = (".", "/", "~")
_MOST_BYTES = 16 << 20
# What a model is named by: a file, a folder, a name, a configuration, or what was read of it.
Model = str | os.PathLike[str] | Mapping[str, Any] | Architecture


def read_model(config: Model, *, hub: bool = True) -> Architecture:
    """Read a model's architecture from its Hugging Face ``config.json``.

    Args:
        config: The file, the folder that has it, its content as a dict, a name of the catalogue
            such as ``"llama-3.1-8b"``, or a model of the hub such as ``"Qwen/Qwen3-8B"``.
        hub: Whether the hub may be asked, which needs ``huggingface_hub`` and the network. A model
            of the catalogue is never asked for.

    Raises:
        ArgumentTypeError: ``config`` is none of these.
        InvalidArgumentError: There is no such model, its type is not known, or a field that
            decides its size is missing or wrong.
        MissingExtraError: A model of the hub is wanted and ``huggingface_hub`` is not installed.

    >>> model = read_model("qwen2.5-7b")
    >>> len(model.layers), model.layers[0].mixer.kind, model.tied
    (28, 'GQA', False)
    """
    if isinstance(config, Architecture):
        return config
    values, where = read_configuration(config, hub=hub)
    return replace(read_architecture(Fields(values, where)), configuration=values)


def read_configuration(config: Model, *, hub: bool = True) -> tuple[dict[str, Any], str]:
    """Find a configuration; returns its content and what messages call it.

    Args:
        config: As for :func:`read_model`.
        hub: Whether the hub may be asked.

    Raises:
        ArgumentTypeError, InvalidArgumentError, MissingExtraError: As for :func:`read_model`.
    """
    if isinstance(config, Architecture):
        return _kept(config), config.name
    if isinstance(config, Mapping):
        return dict(config), "the configuration"
    if not isinstance(config, str | os.PathLike):
        raise ArgumentTypeError(
            "config must be a file, a folder, a dict or a name of the catalogue, got "
            f"{type(config).__name__}"
        )
    path = Path(config)
    text = os.fspath(config)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as err:
        raise InvalidArgumentError(
            f"config, a text of {len(text):,} characters that begins with {text[:20]!r}, is no "
            f"path ({err.strerror or err}); the contents of a config.json are passed as a dict"
        ) from err
    if is_folder:
        path = path / "config.json"
        if not path.is_file():
            raise InvalidArgumentError(f"the folder {text!r} has no config.json")
    if is_folder or is_file:
        return _parsed(path), text
    return _named(text, hub=hub)


def _kept(model: Architecture) -> dict[str, Any]:
    if not model.configuration:
        raise InvalidArgumentError(
            f"{model.name}: an Architecture of your own has no configuration, which is needed "
            "here; pass the config.json or what read_model makes of it"
        )
    return dict(model.configuration)


def _named(text: str, *, hub: bool) -> tuple[dict[str, Any], str]:
    """A model of the catalogue or of the hub; a path that is not there is neither."""
    if text.startswith(_PATH_STARTS):
        where = "" if Path(text).is_absolute() else f" in {Path.cwd()}"
        raise InvalidArgumentError(f"there is no file or folder {text!r}{where}")
    plain = "/" not in text or _HUB_NAME.fullmatch(text)
    known = configuration_of(text) if plain else None
    if known is not None:
        return known, text.rsplit("/", 1)[-1].lower()
    if hub and not text.endswith(".json") and _HUB_NAME.fullmatch(text):
        return _parsed(_from_hub(text)), text
    raise unknown(text)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidArgumentError(
                f"{path} has {path.stat().st_size:,} bytes; no config.json is that large"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise InvalidArgumentError(f"{path} cannot be read: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:
        raise InvalidArgumentError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{path} holds a {type(values).__name__}, not a JSON object")
    return values


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as err:
        raise MissingExtraError(
            f"{name!r} is not in the catalogue, and asking the hub needs huggingface_hub: "
            "pip install 'vramkit[hub]', or give the path of the model's config.json"
        ) from err
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as err:
        raise InvalidArgumentError(
            f"the config.json of {name!r} could not be fetched from the Hugging Face hub "
            f"({type(err).__name__}); download it by other means and give its path"
        ) from err
