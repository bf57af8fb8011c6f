"""Whether a model's code does the same once its pairs are fused.

Code may ask of which type a module is: ``if isinstance(layer, nn.ReLU): features.append(x)``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vramkit.nn._graphs import Region
from vramkit.nn._modules import with_relu
from vramkit.nn._report import FusionEntry


def without_those_that_matter(
    model: nn.Module, region: Region, entries: dict[str, FusionEntry]
) -> dict[str, FusionEntry]:
    """Return the entries of a region, and leave pairs whose types decide what its code does."""
    fusible = [entry for entry in entries.values() if entry.status == "fusible"]
    kept = _alike(model, region, fusible)
    return {
        name: entry if entry.status != "fusible" or entry in kept else _left(entry)
        for name, entry in entries.items()
    }


def _alike(model: nn.Module, region: Region, pairs: list[FusionEntry]) -> list[FusionEntry]:
    """Return pairs that the code does not notice when they are all fused."""
    if _is_alike(model, region, pairs):
        return pairs
    if len(pairs) == 1:
        return []
    half = len(pairs) // 2
    first = _alike(model, region, pairs[:half])
    both = first + _alike(model, region, pairs[half:])
    # Code may notice some pairs only together.
    return both if _is_alike(model, region, both) else first


def _is_alike(model: nn.Module, region: Region, pairs: list[FusionEntry]) -> bool:
    replaced: dict[str, nn.Module] = {}
    for pair in pairs:
        replaced[pair.name] = with_relu(model.get_submodule(pair.name), "output")
        others = (name for name in (pair.batch_norm, pair.relu) if name is not None)
        replaced |= {name: nn.Identity() for name in others}
    names = {name.removeprefix(region.prefix): module for name, module in replaced.items()}
    return not pairs or region.stays(model, names)


def _left(entry: FusionEntry) -> FusionEntry:
    reason = (
        "fusing it would change what forward() does, which may depend on the types of modules, as "
        "with isinstance(layer, nn.ReLU)"
    )
    return replace(entry, status="left", reason=reason, relu=None, batch_norm=None, save=None)
