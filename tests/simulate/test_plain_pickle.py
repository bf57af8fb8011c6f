import os
import pickle
import struct
from collections import OrderedDict
from typing import Any

import pytest
from helpers.traces import Call, outcome_of
from hypothesis import given
from hypothesis import strategies as st

from vramkit.simulate._plain_pickle import PlainPickleError, load_plain

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner)
    ),
)


@given(PLAIN, st.integers(3, 5))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert load_plain(pickle.dumps(value, protocol=protocol)) == value


def test_shared_values_stay_shared() -> None:
    frames = [{"line": 1}]
    first, second = load_plain(pickle.dumps([frames, frames]))
    assert first is second


def test_many_entries_come_back() -> None:
    value = {"rows": [{"number": number} for number in range(70_000)]}
    assert load_plain(pickle.dumps(value)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_is_refused_and_not_made(
    protocol: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = pickle.dumps({"device_traces": [Call(os.system, "touch seen")]}, protocol=protocol)
    with pytest.raises(PlainPickleError, match="GLOBAL imports, calls or builds objects; only"):
        load_plain(hostile)
    assert not list(tmp_path.iterdir())
    pickle.loads(hostile)
    assert (tmp_path / "seen").exists(), "the pickle was not hostile in the first place"


@pytest.mark.parametrize(
    ("instructions", "name"),
    [
        (b"cos\nsystem\n.", "GLOBAL"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93.", "STACK_GLOBAL"),
        (b"Pid\n.", "PERSID"),
        (b"K\x01Q.", "BINPERSID"),
        (b"}}b.", "BUILD"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(K\x01o.", "OBJ"),
        (b"K\x01)R.", "REDUCE"),
        (b"K\x01)\x81.", "NEWOBJ"),
        (b"K\x01)}\x92.", "NEWOBJ_EX"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\0.", "EXT2"),
        (b"\x84\x01\0\0\0.", "EXT4"),
    ],
)
def test_each_instruction_that_makes_objects_is_refused(instructions: bytes, name: str) -> None:
    with pytest.raises(PlainPickleError, match=rf"byte \d+: instruction {name} imports"):
        load_plain(b"\x80\x02" + instructions)


@pytest.mark.parametrize("value", [OrderedDict(a=1), {1, 2}, frozenset([1]), bytearray(b"x"), 1j])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(PlainPickleError, match="instruction"):
        load_plain(pickle.dumps(value))


# A list of 61 tuples, each twice the one before: the last one's hash takes 2**60 steps.
NESTED = b"](\x29\x94" + b"".join(bytes([0x68, n, 0x68, n, 0x86, 0x94]) for n in range(60)) + b"e"


@pytest.mark.parametrize(
    ("instructions", "text"),
    [
        # Each of these makes Python's own unpickler take all memory, or for ever.
        (b"]r\xff\xff\xff\x7f.", "memo entry 2,147,483,647 comes before entry 0"),
        (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "it ends .* bytes too early"),
        (b"\x8d" + struct.pack("<Q", 1 << 40) + b"x.", "it ends .* bytes too early"),
        (NESTED + b"}h\x3cNs.", "key of type tuple, not a text"),
        (b"}K\x01Ns.", "key of type int, not a text"),
        # And these are damaged.
        (b"", "ends too early"),
        (b"]", "ends too early"),
        (b".", "ends too early"),
        (b"e.", "ends too early"),
        (b"K\x01\x86.", "a tuple lacks values"),
        (b"}(Nu.", "a key without a value"),
        (b"}Na.", "items are added to a dict, not to a list"),
        (b"](NNu.", "entries are set in a list, not in a dict"),
        (b"h\x07.", "ends too early or its values do not fit"),
        (b"\x8c\x02\xff\xff.", "a text is damaged"),
        (b"\x8a\x09\x01", "ends too early"),
        (b"?.", "instruction 63 is unknown"),
    ],
)
def test_damage_and_bombs_are_refused(instructions: bytes, text: str) -> None:
    with pytest.raises(PlainPickleError, match=text):
        load_plain(b"\x80\x04" + instructions)


def test_deep_nesting_needs_no_recursion() -> None:
    deep = load_plain(b"\x80\x04" + b"]" * 60_000 + b"a" * 59_999 + b".")
    assert type(deep) is list


@pytest.mark.parametrize("opening", [b"]", b"}", b"(", b"N]", b"\x8c\0"])
def test_values_that_wait_for_their_container_are_limited(opening: bytes) -> None:
    with pytest.raises(PlainPickleError, match="more than the 65,536 values admitted wait"):
        load_plain(b"\x80\x04" + opening * 70_000 + b".")


@pytest.mark.parametrize("item", [b"]", b"}", b")\x85", b"\x8c\0", b"C\0", b"(t", b"X\0\0\0\0"])
def test_objects_are_limited(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vramkit.simulate._plain_pickle.MAX_OBJECTS", 100)
    assert len(load_plain(b"\x80\x04](" + item * 99 + b"e.")) == 99
    with pytest.raises(PlainPickleError, match="more than the 100 lists, dicts, tuples and texts"):
        load_plain(b"\x80\x04](" + item * 100 + b"e.")


EXPECTED = (True, False, PlainPickleError)


@given(st.binary(max_size=60))
def test_bytes_never_end_in_another_exception(content: bytes) -> None:
    assert outcome_of(lambda: load_plain(b"\x80\x04" + content) is None) in EXPECTED


@given(st.integers(0, 400), st.integers(0, 255))
def test_damaged_pickles_never_end_in_another_exception(place: int, value: int) -> None:
    content = bytearray(pickle.dumps([{"a": (1, 2.5, "x"), "b": [1 << 40]}] * 9))
    content[place % len(content)] = value
    assert outcome_of(lambda: load_plain(bytes(content)) is None) in EXPECTED
