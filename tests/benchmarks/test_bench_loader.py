"""All contestants of the loader's benchmark copy the same rows; one that does not is refused."""

from collections.abc import Callable

import pytest

from benchmarks.loader.gather import check_same_work, contestants, make_case, rate
from benchmarks.loader.permutation import own_times, torch_times


def test_contestants_copy_the_same_rows() -> None:
    case = make_case(256, 1 << 20, 1 << 20)
    gathers = contestants(case, 2, with_own=True)
    assert list(gathers) == ["index_select", "numpy.take", "vramkit"]
    check_same_work(case, gathers)
    assert case.copied_bytes == 1 << 20
    assert rate(case, gathers["vramkit"]) > 0


def test_other_rows_are_refused() -> None:
    case = make_case(64, 1 << 16, 1 << 16)
    with pytest.raises(RuntimeError, match="idle has gathered other rows"):
        check_same_work(case, {"idle": lambda: None})


@pytest.mark.parametrize("times", [own_times, torch_times])
def test_the_first_batch_comes_before_the_last(times: Callable[[int], tuple[float, float]]) -> None:
    first, last = times(10_000)
    assert 0 < first <= last
