"""How ranks split a model: tensor, pipeline, expert, data and context parallelism."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate.config._architecture import Architecture, Layer, Weight


@dataclass(frozen=True)
class Parallel:
    """A layout of ranks; each number is a degree, 1 for none.

    Attributes:
        tensor: Ranks that split every matrix.
        pipeline: Stages that split the layers.
        expert: Ranks that split the routed experts; they are also tensor, data or context ranks.
        data: Replicas, which split the batch.
        context: Ranks that split every sequence while training.
        expert_tensor: Ranks that split each routed expert. By default ``tensor`` while training,
            as in Megatron-LM, and the ``tensor`` ranks that ``expert`` leaves while serving, as in
            vLLM and SGLang.
        stages: Number of layers of each pipeline stage, where they are not nearly equal.

    Raises:
        InvalidArgumentError: A degree is below 1, or ``stages`` does not have ``pipeline`` entries.

    >>> Parallel(tensor=8, pipeline=2).gpus
    16
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    data: int = 1
    context: int = 1
    expert_tensor: int | None = None
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the degrees."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "stages" or (each.name == "expert_tensor" and value is None):
                continue
            if type(value) is not int or not 1 <= value <= 1 << 20:
                raise InvalidArgumentError(
                    f"{each.name} must be an integer from 1 to 1,048,576, got {value!r}"
                )
        if self.stages is not None:
            self._check_stages(self.stages)

    def _check_stages(self, stages: object) -> None:
        numbers = stages if isinstance(stages, tuple | list) else ("none",)
        if not all(type(each) is int for each in numbers):
            raise InvalidArgumentError(f"stages must be a tuple of integers, got {stages!r}")
        if len(numbers) != self.pipeline:
            raise InvalidArgumentError(
                f"stages has {len(numbers)} entries for {self.pipeline} pipeline stages"
            )

    @property
    def gpus(self) -> int:
        """Number of ranks."""
        return self.tensor * self.pipeline * self.data * self.context

    def cut(self, *, expert_tensor: int) -> Cut:
        """How the matrices of one stage are cut.

        Args:
            expert_tensor: What ``expert_tensor`` is where it is not given.

        Raises:
            InvalidArgumentError: There are not as many ranks as the experts are spread over.
        """
        cut = Cut(self.tensor, self.expert, self.expert_tensor or expert_tensor)
        ranks = self.tensor * self.data * self.context
        if ranks % (cut.expert * cut.expert_tensor):
            raise InvalidArgumentError(
                f"{cut.expert} expert ranks with {cut.expert_tensor} ranks for each expert do not "
                f"divide the {ranks} ranks of a stage (tensor {self.tensor} x data {self.data} x "
                f"context {self.context}); take another number of expert ranks (expert, --expert), "
                "or of ranks for each expert (expert_tensor, --expert-tensor; 1 leaves them whole)"
            )
        return cut

    def stage_layers(self, model: Architecture) -> tuple[tuple[Layer, ...], ...]:
        """The layers of each pipeline stage.

        The numbers differ by one at most; the last stage, which also has the output layer, and
        then the first are the shorter ones, as in vLLM.

        Raises:
            InvalidArgumentError: There are fewer layers than stages, or ``stages`` does not sum to
                the layers.
        """
        count = len(model.layers)
        if self.pipeline > count:
            raise InvalidArgumentError(
                f"{count} layers cannot be split into {self.pipeline} pipeline stages"
            )
        numbers = list(self.stages or ())
        if not numbers:
            numbers = [count // self.pipeline] * self.pipeline
            left = count % self.pipeline
            for at in range(2, left + 2):
                numbers[-at] += 1
        if sum(numbers) != count or min(numbers) < 0:
            raise InvalidArgumentError(
                f"stages {tuple(numbers)} do not sum to the {count} layers of {model.name}"
            )
        ends = [sum(numbers[: at + 1]) for at in range(len(numbers))]
        return tuple(
            model.layers[end - number : end] for end, number in zip(ends, numbers, strict=True)
        )


def check_parallel(value: object) -> None:
    """Refuse what is no layout of ranks.

    Raises:
        ArgumentTypeError: It is something else, such as a number.
    """
    if not isinstance(value, Parallel):
        raise ArgumentTypeError(
            "parallel must be a vramkit.estimate.config.Parallel, such as Parallel(data=8), got "
            f"{value!r} of {type(value).__name__}"
        )


@dataclass(frozen=True)
class Cut:
    """How the matrices of a stage are cut.

    Attributes:
        tensor: Ranks that split what is no routed expert.
        expert: Ranks over which the routed experts are spread.
        expert_tensor: Ranks that split each routed expert.
    """

    tensor: int = 1
    expert: int = 1
    expert_tensor: int = 1

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """The shape of a rank's piece, of one expert where it is an expert's.

        Raises:
            InvalidArgumentError: The ranks do not divide its heads or rows.
        """
        ranks = self.expert_tensor if weight.experts else self.tensor
        if ranks == 1 or weight.units == 1:
            return weight.shape
        pieces = self.pieces(weight, ranks)
        along = 1 if weight.input_split else 0
        shape = list(weight.shape)
        shape[along] = -(-shape[along] * pieces // weight.units)
        return tuple(shape)

    def experts(self, weight: Weight) -> int:
        """How many experts' tensors a rank holds; 1 for what is no routed expert's."""
        return -(-weight.experts // self.expert) if weight.experts else 1

    def pieces(self, weight: Weight, ranks: int) -> int:
        """How many of its units a rank holds."""
        if weight.units % ranks == 0 or weight.padded:
            return -(-weight.units // ranks)
        if weight.repeats and ranks % weight.units == 0:
            return 1
        what = "rows" if weight.part in ("mlp", "experts") else "heads"
        raise InvalidArgumentError(
            f"{ranks} ranks cannot split the {weight.units:,} {what} of {weight.name} evenly; "
            f"take a number of ranks that divides {weight.units:,}"
        )
