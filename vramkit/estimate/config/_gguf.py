"""The kinds of GGUF files: which type llama.cpp stores each matrix in, and its bytes.

A kind such as Q4_K_M mixes types by the matrix and the layer. The rules are those that llama.cpp's
quantisation follows without an importance matrix; the tests hold the sums against the sizes that
its documentation gives for Llama 3 8B.
"""

from __future__ import annotations

from dataclasses import dataclass

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config._architecture import Architecture, Attention, Mixture, Weight

# Bytes and elements of a block.
_TYPES = {
    "F32": (4, 1),
    "F16": (2, 1),
    "Q8_0": (34, 32),
    "Q4_0": (18, 32),
    "Q4_1": (20, 32),
    "Q5_0": (22, 32),
    "Q5_1": (24, 32),
    "IQ4_NL": (18, 32),
    "Q2_K": (84, 256),
    "Q3_K": (110, 256),
    "Q4_K": (144, 256),
    "Q5_K": (176, 256),
    "Q6_K": (210, 256),
}
# What replaces a type whose blocks of 256 do not divide the rows.
_FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_KINDS = {
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_0": "Q4_0",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "Q2_K": "Q2_K",
}
# Of one matrix for queries, keys and values.
_FUSED = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
_OUTPUT_PROJECTION = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}


def gguf_kinds() -> tuple[str, ...]:
    """The kinds, the largest first."""
    return tuple(_KINDS)


@dataclass(frozen=True)
class Gguf:
    """A kind of GGUF file for one model.

    Attributes:
        name: The kind.
        model: The model, whose heads and experts decide some types.
    """

    name: str
    model: Architecture

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.name not in _KINDS:
            raise InvalidArgumentError(
                f"the GGUF kind {self.name!r} is not known; known are {', '.join(_KINDS)}"
            )

    @property
    def left(self) -> str:
        """What stays unquantised."""
        return "norms, biases and routers"

    @property
    def left_dtype(self) -> str:
        """The dtype of what stays unquantised."""
        return "fp32"

    def tensor_bytes(self, weight: Weight, shape: tuple[int, ...], layer: int | None) -> float:
        """Bytes of one tensor.

        Args:
            weight: The tensor.
            shape: The shape of what a rank has of it.
            layer: Its layer, ``None`` for what is in no layer.
        """
        elements = 1
        for each in shape:
            elements *= each
        if len(shape) != 2 or weight.part in ("router", "norm") or weight.name == "conv1d":
            return 4.0 * elements
        if weight.part == "vision":
            return 2.0 * elements
        found = self._type_of(weight, layer)
        if weight.shape[1] % _TYPES[found][1]:
            found = _FALLBACK.get(found, "F16")
        if weight.shape[1] % _TYPES[found][1]:
            found = "F16"
        size, block = _TYPES[found]
        return elements * size / block

    def _type_of(self, weight: Weight, layer: int | None) -> str:
        default = _KINDS[self.name]
        if layer is None:
            is_output = weight.part == "head" or self.model.tied
            return "Q6_K" if is_output and self.name != "Q8_0" else default
        name = weight.name
        if self._fused() and name in ("q_proj", "k_proj", "v_proj"):
            return _FUSED.get(self.name, default)
        if name == "v_proj":
            return self._values(layer)
        if name == "k_proj" and self._eight_experts():
            return "Q8_0"
        if name == "o_proj":
            if self._eight_experts() and default in ("Q2_K", "Q3_K", "Q4_K"):
                return "Q5_K"
            return _OUTPUT_PROJECTION.get(self.name, default)
        if name == "down_proj":
            return self._down(layer)
        return default

    def _values(self, layer: int) -> str:
        if self._eight_experts():
            return "Q8_0"
        if self.name == "Q2_K":
            return "Q4_K" if self._group() >= 4 else "Q3_K"
        if self.name == "Q3_K_M":
            return "Q5_K" if layer < 2 else "Q4_K"
        if self.name == "Q3_K_L":
            return "Q5_K"
        if self.name == "Q4_K_S" and layer < 4:
            return "Q5_K"
        if self.name in ("Q4_K_M", "Q5_K_M") and self._more_bits(layer):
            return "Q6_K"
        default = _KINDS[self.name]
        return "Q5_K" if self._seventy() and default in ("Q3_K", "Q4_K") else default

    def _down(self, layer: int) -> str:
        layers = len(self.model.layers)
        if self.name == "Q2_K":
            return "Q3_K"
        if self.name == "Q3_K_M":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        if self.name == "Q3_K_L":
            return "Q5_K"
        if self.name == "Q4_K_S":
            return "Q5_K" if layer < layers // 8 else "Q4_K"
        if self.name in ("Q4_K_M", "Q5_K_M") and self._more_bits(layer):
            return "Q6_K"
        return _KINDS[self.name]

    def _more_bits(self, layer: int) -> bool:
        layers = len(self.model.layers)
        eighth = layers // 8
        return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

    def _fused(self) -> bool:
        mixer = self.model.layers[0].mixer
        return isinstance(mixer, Attention) and mixer.fused

    def _group(self) -> int:
        mixer = self.model.layers[0].mixer
        return mixer.heads // mixer.kv_heads if isinstance(mixer, Attention) else 1

    def _seventy(self) -> bool:
        """Whether llama.cpp calls it a 70B: its values' heads are few, and so cheap to keep."""
        llama = self.model.model_type in ("llama", "qwen2")
        return llama and len(self.model.layers) == 80 and self._group() > 1

    def _eight_experts(self) -> bool:
        networks = (layer.feed_forward for layer in self.model.layers)
        return any(isinstance(each, Mixture) and each.experts == 8 for each in networks)
