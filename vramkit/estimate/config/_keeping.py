"""How a training keeps activations."""

from __future__ import annotations

from dataclasses import dataclass

from vramkit.estimate.config._parallel import Cut


@dataclass(frozen=True)
class Keeping:
    """How activations are kept.

    Attributes:
        hidden: Elements of the residual stream.
        element: Bytes of an activation.
        stream_element: Bytes of an element of the residual stream; under autocast it is fp32.
        linear_input: Bytes of an element that a linear layer keeps of its input.
        cut: How ranks split the layer.
        stream_ranks: Ranks that split what is not split by heads or rows: the tensor ranks under
            sequence parallelism, otherwise 1.
        row_tokens: Tokens that attend to each other, for the scores.
        flash: Whether attention never stores the scores.
        dropout: Whether masks of dropout are kept.
        fused: Whether norms and activation functions are fused kernels.
        recompute_core: Whether the scores are computed again in the backward (selective
            recomputation).
    """

    hidden: int
    element: int
    stream_element: int
    linear_input: float
    cut: Cut
    stream_ranks: int
    row_tokens: int
    flash: bool
    dropout: bool
    recompute_core: bool
    fused: bool = True

    @property
    def stream(self) -> float:
        """Bytes of the residual stream for one token on a rank."""
        return self.hidden * self.stream_element / self.stream_ranks

    @property
    def stream_input(self) -> float:
        """Bytes of the residual stream as the input of a linear layer."""
        return self.hidden * self.linear_input / self.stream_ranks

    @property
    def casts(self) -> bool:
        """Whether the residual stream is wider than the inputs of linear layers."""
        return self.stream_element != self.element

    def norm(self, *, native: bool, wide: bool) -> float:
        """Bytes that a norm over the residual stream keeps.

        Args:
            native: Whether it is PyTorch's layer normalisation, which is one kernel.
            wide: Whether it multiplies by its weight in fp32 where it is not fused.
        """
        if self.fused or native:
            return self.stream
        # An fp32 copy of its input and the normalised value.
        element = 4 if wide else self.stream_element
        return self.hidden * (4 + element) / self.stream_ranks

    @property
    def mask(self) -> float:
        """Bytes of a dropout mask over the residual stream."""
        return self.hidden / self.stream_ranks if self.dropout else 0
