"""Bytes of a rank's weights under a quantisation scheme, by part."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vramkit.estimate.config._architecture import Architecture, Layer, Weight
from vramkit.estimate.config._gguf import Gguf, gguf_kinds
from vramkit.estimate.config._layer_weights import (
    embedding_weights,
    head_weights,
    layer_weights,
)
from vramkit.estimate.config._parallel import Cut
from vramkit.estimate.config._schemes import DTYPE_BYTES, Scheme, base_dtype, scheme_of

# Kept in fp32 whatever the rest has.
_FLOAT32 = ("gate.e_score_correction_bias", "A_log", "dt_bias")


def storage_of(name: str, model: Architecture) -> Scheme | Gguf:
    """Return how weights are stored.

    Args:
        name: A scheme or a kind of GGUF; case does not matter.
        model: The model.

    Raises:
        InvalidArgumentError: The name is not known.
    """
    if name.upper() in gguf_kinds():
        return Gguf(name.upper(), model)
    return scheme_of(name.lower(), model)


def stage_weights(
    model: Architecture, stages: tuple[tuple[Layer, ...], ...], at: int
) -> Iterable[tuple[Weight, int | None]]:
    """Yield the tensors of a pipeline stage, each with its layer.

    A tied output layer on another stage than the embedding is a copy of its own.
    """
    if at == 0:
        yield from ((weight, None) for weight in embedding_weights(model))
    first = sum(len(each) for each in stages[:at])
    for number, layer in enumerate(stages[at], start=first):
        yield from ((weight, number) for weight in layer_weights(layer, model.hidden))
    if at == len(stages) - 1:
        yield from ((weight, None) for weight in head_weights(model))
        if model.tied and at > 0:
            yield embedding_weights(model)[0], None


def weight_bytes(
    model: Architecture,
    weights: Iterable[tuple[Weight, int | None]],
    cut: Cut,
    storage: Scheme | Gguf,
) -> dict[str, int]:
    """Sum the bytes of tensors by part.

    Args:
        model: The model, for the dtype of what is not quantised.
        weights: The tensors with their layers.
        cut: What a rank has of each.
        storage: How they are stored.
    """
    plain = DTYPE_BYTES[base_dtype(model)]
    found: dict[str, float] = {}
    for weight, layer in weights:
        shape, copies = cut.shape(weight), cut.experts(weight)
        if isinstance(storage, Gguf):
            size = storage.tensor_bytes(weight, shape, layer)
        elif storage.name == "fp32" or weight.name in _FLOAT32:
            size = 4.0 * math.prod(shape)
        elif storage.applies(weight):
            size = storage.matrix_bytes(shape)
        else:
            size = float(plain * math.prod(shape))
        found[weight.part] = found.get(weight.part, 0) + size * copies
    return {part: math.ceil(size) for part, size in found.items()}
