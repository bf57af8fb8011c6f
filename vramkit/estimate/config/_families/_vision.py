"""Encoders of images: their weights only; their activations are not counted."""

from __future__ import annotations

from vramkit.estimate.config._architecture import Weight
from vramkit.estimate.config._fields import Fields


def encoder_weights(fields: Fields) -> tuple[Weight, ...]:
    """Return the weights of a vision transformer's layers, with biases and two norms each.

    Args:
        fields: The ``vision_config``.
    """
    width, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    layers = fields.integer("num_hidden_layers")
    vectors = 4 * width + 4 * width + inner + width
    fields.notes.append(
        "The weights of the image encoder are counted, on every rank; what it needs while it "
        "encodes images is not."
    )
    return (
        Weight("vision", "attention", (layers, 4, width, width)),
        Weight("vision", "mlp", (layers, 2, width, inner)),
        Weight("vision", "norms and biases", (layers, vectors)),
    )
