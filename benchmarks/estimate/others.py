"""Models of others, and of kinds that the rules of estimates had not seen when they were measured.

They come from timm, torchvision, transformers, peft and torch_geometric, or are plain PyTorch. Each
entry of ``OTHERS`` builds a step on ``"cuda"``.
"""

from __future__ import annotations

from benchmarks.estimate.others_more import MORE
from benchmarks.estimate.others_text import TEXT
from benchmarks.estimate.others_vision import VISION
from benchmarks.estimate.training import MakeStep

OTHERS: dict[str, MakeStep] = {**VISION, **TEXT, **MORE}

# The labels that deberta selects have a size that depends on data; all are selected, as a guess
# assumes. gat and sage drop edges by a mask: no guess is made for that, so they are refused.
GUESSED = ("deberta",)
