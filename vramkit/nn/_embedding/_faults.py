"""Which feature of a collection an error is about."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vramkit.errors import InvalidArgumentError, RowIndexError, TableFullError, VramkitError
from vramkit.nn._embedding._input import OPEN
from vramkit.nn._embedding._request import Request

# What a native call for several features raises without a name.
NAMELESS = (RowIndexError, TableFullError, InvalidArgumentError)


def of_feature(err: VramkitError, feature: str, table: str) -> VramkitError:
    """Return an error of the same type that names the feature and its table."""
    return type(err)(f"feature {feature!r} of table {table!r}: {err}")


def feature_at_fault(err: VramkitError, asked: Iterable[tuple[str, Request]]) -> str | None:
    """Return the first feature whose request is what a native call complains of.

    None if there is none: the error may be about an earlier call, or about memory of the host.
    """
    for feature, request in asked:
        # Reading values would end the capture of a CUDA graph.
        if request.ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        if isinstance(err, RowIndexError):
            is_bad = _has_unknown_id(request)
        elif isinstance(err, TableFullError):
            is_bad = _has_too_many_ids(request)
        else:
            is_bad = _has_bad_bounds(request)
        if is_bad:
            return feature
    return None


def _has_unknown_id(request: Request) -> bool:
    rows = request.table.config.rows
    return rows is not None and bool(((request.ids < 0) | (request.ids >= rows)).any())


def _has_too_many_ids(request: Request) -> bool:
    table = request.table
    if not table.config.is_bounded:
        return False
    distinct, facts = request.ids.unique(), table.facts()
    if table.config.evicts:
        return len(distinct) > facts.capacity
    held = table.keys()
    return len(distinct[~torch.isin(distinct, held)]) > facts.capacity - facts.rows


def _has_bad_bounds(request: Request) -> bool:
    bounds, count = request.bounds, request.ids.numel()
    if len(bounds) == 0:  # no bags, or one in each row of the ids
        return False
    ends_wrong = not request.mode & OPEN and bool(bounds[-1] != count)
    return ends_wrong or bool((bounds[0] != 0) | (bounds.diff() < 0).any() | (bounds[-1] > count))
