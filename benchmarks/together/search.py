"""The search for the largest number that fits, from a guess on."""

import math
from collections.abc import Callable, Mapping

STEP = 1.06
ENOUGH = 1.02


def next_try(tries: Mapping[int, bool], guess: int) -> int | None:
    """Choose the next number to try; None when the largest that fits is known well enough.

    Args:
        tries: Whether each number that was tried fits.
        guess: The first to try.
    """
    if not tries:
        return guess
    fit = max((number for number, ok in tries.items() if ok), default=None)
    failed = min((number for number, ok in tries.items() if not ok), default=None)
    if fit is None:
        assert failed is not None
        # Ever larger steps down: a guess may be far off.
        return int(failed / STEP ** len(tries))
    if failed is None:
        return math.ceil(fit * STEP ** len(tries))
    return None if failed <= fit * ENOUGH else int(math.sqrt(fit * failed))


def largest(
    attempt: Callable[[int], bool], guess: int, *, most_tries: int
) -> tuple[int | None, int | None]:
    """Return the largest number that fitted and the smallest that did not, of those tried.

    Args:
        attempt: Tries a number.
        guess: The first to try.
        most_tries: How many to try; twice as many until one fits.
    """
    tries: dict[int, bool] = {}
    while len(tries) < most_tries * (1 if any(tries.values()) else 2):
        number = next_try(tries, guess)
        if number is None or number in tries:
            break
        tries[number] = attempt(number)
    fit = max((number for number, ok in tries.items() if ok), default=None)
    return fit, min((number for number, ok in tries.items() if not ok), default=None)
