"""Memory of large language models from their configuration, in closed form."""

from vramkit.estimate.config._architecture import Architecture
from vramkit.estimate.config._catalogue import CatalogueEntry, catalogue
from vramkit.estimate.config._parameters import ParameterCount, count_parameters
from vramkit.estimate.config._reading import read_model

__all__ = [
    "Architecture",
    "CatalogueEntry",
    "ParameterCount",
    "catalogue",
    "count_parameters",
    "read_model",
]
