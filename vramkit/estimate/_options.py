"""The names of the options of an estimate: what is unknown is refused, and what help() shows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from vramkit.errors import ArgumentTypeError


def signature_of(function: Callable[..., Any], options: type) -> inspect.Signature:
    """Return a function's signature with the keys of its ``**options`` as keywords.

    Args:
        function: The function; its last parameter takes the options.
        options: The ``TypedDict`` of the options, all of which default to None.
    """
    signature = inspect.signature(function)
    named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    named += [
        inspect.Parameter(name, keyword, default=None, annotation=annotation)
        for name, annotation in inspect.get_annotations(options).items()
    ]
    return signature.replace(parameters=named)


def check_names(given: Iterable[str], signature: inspect.Signature) -> None:
    """Refuse options that the signature does not have.

    Args:
        given: The names that were given.
        signature: What :func:`signature_of` returned.

    Raises:
        ArgumentTypeError: A name is unknown; the text has the nearest one.
    """
    known = list(signature.parameters)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(known)}"
            raise ArgumentTypeError(f"estimate has no option {name!r}; {hint}")
