"""Memory of large language models from their configuration, in closed form."""

from vramkit.estimate.config._advice import Change, advise
from vramkit.estimate.config._architecture import Architecture
from vramkit.estimate.config._catalogue import CatalogueEntry, catalogue
from vramkit.estimate.config._parallel import Parallel
from vramkit.estimate.config._parameters import ParameterCount, count_parameters
from vramkit.estimate.config._reading import read_model
from vramkit.estimate.config._results import Amount
from vramkit.estimate.config._serving import Serving, ServingEstimate, estimate_serving
from vramkit.estimate.config._traced import trace_model
from vramkit.estimate.config._training import TrainingEstimate, estimate_training
from vramkit.estimate.config._training_options import Training

__all__ = [
    "Amount",
    "Architecture",
    "CatalogueEntry",
    "Change",
    "Parallel",
    "ParameterCount",
    "Serving",
    "ServingEstimate",
    "Training",
    "TrainingEstimate",
    "advise",
    "catalogue",
    "count_parameters",
    "estimate_serving",
    "estimate_training",
    "read_model",
    "trace_model",
]
