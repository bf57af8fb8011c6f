from fractions import Fraction

import pytest
from helpers.traces import events_of
from hypothesis import given
from hypothesis import strategies as st

from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.simulate import find_min_capacity, parse_capacity
from vramkit.simulate._capacity import CLIMB_PAGES, check_capacity

MIB = 1 << 20
PAGE = 2 * MIB


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("12GiB", 6144),
        ("12 GiB", 6144),
        (str(12 << 30), 6144),
        (str((12 << 30) + PAGE - 1), 6144),
        ("1GB", 476),
        ("1x", 500),
        ("1.01x", 505),
        ("1.0119x", 505),
        ("1.012X", 506),
        (" .5 x", 250),
        ("2.x", 1000),
    ],
)
def test_capacities_are_rounded_down_to_pages(text: str, pages: int) -> None:
    capacity = parse_capacity(text, peak_live_bytes=500 * PAGE, page_bytes=PAGE)
    assert capacity == pages * PAGE


@given(
    ratio=st.decimals(min_value="0.5", max_value="3", places=4),
    peak=st.integers(1 << 30, 1 << 45),
    page=st.sampled_from([1 << 16, PAGE, 2 * PAGE]),
)
def test_the_ratio_never_exceeds_what_was_asked(ratio: object, peak: int, page: int) -> None:
    capacity = parse_capacity(f"{ratio}x", peak_live_bytes=peak, page_bytes=page)
    assert capacity % page == 0
    assert Fraction(capacity, peak) <= Fraction(str(ratio)) < Fraction(capacity + page, peak)
    assert capacity / peak <= float(str(ratio))


@pytest.mark.parametrize("text", ["", "x", "1..0x", "-1x", "1.01", "12Gi", "1e3x", "nanx", "٣x"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    for read in (
        lambda: parse_capacity(text, peak_live_bytes=1 << 30, page_bytes=PAGE),
        lambda: check_capacity(text, page_bytes=PAGE),
    ):
        with pytest.raises(InvalidArgumentError, match=r"^capacity '.* such as '|unknown unit"):
            read()


@pytest.mark.parametrize("text", ["1.01", "50%", "-1x", "0x", "one", "1MiB"])
def test_what_is_refused_names_the_multiple(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"a multiple of the trace's peak such as '1"):
        check_capacity(text, page_bytes=PAGE)


def test_a_capacity_is_checked_without_a_trace() -> None:
    for text in ("1.01x", "2MiB", "12GiB", ".5X"):
        check_capacity(text, page_bytes=PAGE)


def test_less_than_a_page_is_refused() -> None:
    text = (
        r"'1.01x' is 1\.0 MiB, less .* page of 2\.0 MiB: the peak is 1\.0 MiB; .* --capacity 2MiB"
    )
    with pytest.raises(CapacityError, match=text):
        parse_capacity("1.01x", peak_live_bytes=MIB, page_bytes=PAGE)


def search(completes: set[int] | range, *, peak: int = 100) -> tuple[int, list[int]]:
    """The pages found, and those tried, when just these numbers of pages complete."""
    tried: list[int] = []

    def attempt(capacity_bytes: int) -> bool:
        tried.append(capacity_bytes // 10)
        return capacity_bytes // 10 in completes

    events = events_of([0, 0], sizes=[peak * 10])
    return find_min_capacity(events, page_bytes=10, completes=attempt) // 10, tried


def test_the_search_begins_at_the_peak() -> None:
    assert search(range(1000)) == (100, [100])
    events = events_of([0, 0], sizes=[11])
    assert find_min_capacity(events, page_bytes=10, completes=lambda _: True) == 20


def test_the_first_that_completes_is_the_smallest_even_with_gaps() -> None:
    found, tried = search({103, *range(110, 1000)})
    assert found == 103
    assert tried == [100, 101, 102, 103]


@pytest.mark.parametrize("smallest", [CLIMB_PAGES + 99, CLIMB_PAGES + 100, 700, 2000, 5000])
def test_far_beyond_the_peak_the_border_is_found_by_bisection(smallest: int) -> None:
    found, tried = search(range(smallest, 1 << 20))
    assert found == smallest
    assert len(tried) < CLIMB_PAGES + 30


def test_far_beyond_the_peak_what_is_found_completes_and_one_less_does_not() -> None:
    completes = {900, *range(1500, 1 << 20)}
    found, tried = search(completes)
    assert found in completes
    assert found - 1 not in completes
    assert set(range(100, 100 + CLIMB_PAGES)) <= set(tried)


def test_the_search_gives_up() -> None:
    with pytest.raises(CapacityError, match=r"no capacity completes, up to .* try another --page"):
        search(set())
