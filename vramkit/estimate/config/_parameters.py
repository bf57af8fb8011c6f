"""Exact parameter counts, by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vramkit.estimate.config._architecture import Architecture, Layer, Mixture, Part, Weight
from vramkit.estimate.config._layer_weights import (
    embedding_weights,
    head_weights,
    layer_weights,
    prediction_weights,
)
from vramkit.estimate.config._reading import Model, read_model

_TITLES: dict[Part, str] = {
    "embedding": "embedding",
    "attention": "attention and state spaces",
    "mlp": "MLP and shared experts",
    "experts": "routed experts",
    "router": "routers",
    "norm": "norms",
    "head": "output layer",
    "vision": "image encoder",
    "prediction": "multi-token prediction",
}


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters of a model.

    Attributes:
        name: The model.
        parts: Parameters of each part, those for multi-token prediction left out.
        total: Their sum.
        active: Parameters that one token goes through; without the embedding's matrix, of which
            it reads one row, where the output layer has another.
        buffers: Elements that a checkpoint has besides, such as corrections of routers' scores.
        prediction: Parameters of the layers for multi-token prediction, not in ``total``.
    """

    name: str
    parts: dict[str, int]
    total: int
    active: int
    buffers: int
    prediction: int

    def __str__(self) -> str:
        """The table."""
        rows = [(title, self.parts[part]) for part, title in _TITLES.items() if part in self.parts]
        rows += [("total", self.total), ("active for one token", self.active)]
        if self.prediction:
            rows.append(("not in the total: multi-token prediction", self.prediction))
        width = max(len(title) for title, _ in rows)
        lines = [f"{title:{width}}  {count:>19,}" for title, count in rows]
        return "\n".join([f"{self.name}: parameters", *lines])


def count_parameters(model: Model) -> ParameterCount:
    """Count a model's parameters exactly.

    Args:
        model: What :func:`~vramkit.estimate.config.read_model` takes or gives.

    >>> from vramkit.estimate.config import read_model
    >>> count = count_parameters(read_model("mixtral-8x7b"))
    >>> count.total, count.active
    (46702792704, 12748853248)
    """
    model = read_model(model)
    parts: dict[str, int] = {}
    buffers = 0
    for weight in model_weights(model):
        if weight.buffer:
            buffers += weight.elements
        else:
            parts[weight.part] = parts.get(weight.part, 0) + weight.elements
    total = sum(parts.values())
    idle = sum(_idle_elements(layer, model.hidden) for layer in model.layers)
    extra = sum(weight.elements for weight in prediction_weights(model))
    lookup = 0 if model.tied else parts["embedding"]
    seen = total - idle - lookup - parts.get("vision", 0)
    return ParameterCount(model.name, parts, total, seen, buffers, extra)


def model_weights(model: Architecture) -> Iterable[Weight]:
    """Yield every tensor of the model, without multi-token prediction."""
    yield from embedding_weights(model)
    for layer in model.layers:
        yield from layer_weights(layer, model.hidden)
    yield from head_weights(model)


def _idle_elements(layer: Layer, hidden: int) -> int:
    """Elements of the experts that a token does not go through."""
    network = layer.feed_forward
    if not isinstance(network, Mixture):
        return 0
    experts = (weight for weight in layer_weights(layer, hidden) if weight.experts)
    return sum(
        weight.elements // weight.experts * (network.experts - network.chosen) for weight in experts
    )
