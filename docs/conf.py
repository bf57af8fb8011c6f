"""Sphinx's configuration: Markdown pages through MyST, the furo theme, warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vramkit

project = "vramkit"
author = "The vramkit authors"
project_copyright = "The vramkit authors"
release = version = vramkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|os|pathlib|collections|contextlib|cupy)\..*"),
    # Their attributes are shown by what has them.
    (r"py:class", r"vramkit\.estimate\.(_targets\.|config\._\w+\.)?\w+"),
    # RMM's, which is optional.
    (r"py:class", r"(Callback|Device)MemoryResource"),
    # The type of the model that fuse_conv_relu returns.
    (r"py:class", r"vramkit\.nn\._fuse\.Model"),
    # What an estimate keeps for itself, and a path of the standard library.
    (r"py:class", r"Trace|Settings|Request|os\.PathLike"),
    # What a large model is named by: several types.
    (r"py:class", r"Model"),
    # Types of embedding tables: torch's, and the dictionary of keyword arguments.
    (r"py:class", r"Tensor|TableOptions"),
    # The type of a dataset's samples.
    (r"py:class", r"vramkit\.loader\._data_loader\.T_co"),
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = f"vramkit {release}"
