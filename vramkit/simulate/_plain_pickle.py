"""A pickle decoder that knows plain containers and scalars, and nothing else.

Python's own unpickler with a ``find_class`` that refuses is not enough for files of strangers:
one instruction makes its memo table as large as the machine's memory, and keys made of nested
tuples or of chosen numbers take for ever to hash or to tell apart. Here instructions that import,
call or build objects do not exist, memo entries come in order, dictionary keys are texts, and no
length is believed before the file holds that much. So time and memory grow with the file only, and
what takes more memory than its bytes in the file is counted.

What comes back may still share parts, or contain itself: a few bytes can describe a value that is
endless when it is walked through. So ask for the type of a value before you do anything with it.
"""

import struct
from collections.abc import Callable
from typing import Any

from vramkit.simulate._limits import MAX_OBJECTS, MAX_OPEN_VALUES

_BINGET, _LONG_BINGET, _MEMOIZE = ord("h"), ord("j"), 0x94
_BININT, _BININT1, _LONG1 = ord("J"), ord("K"), 0x8A
_EMPTY_DICT, _STOP = ord("}"), ord(".")

_FLOAT64 = struct.Struct(">d")


class PlainPickleError(ValueError):
    """The bytes are no pickle, or hold more than plain containers and scalars."""


def load_plain(data: bytes) -> Any:
    """Decode a pickle of dicts, lists, tuples, texts, bytes, numbers, booleans and ``None``.

    Args:
        data: A pickle of protocol 2 to 5.

    Raises:
        PlainPickleError: Anything else is in it, or it is damaged.

    >>> import pickle
    >>> load_plain(pickle.dumps({"a": [1, 2.5, None, (True, "x")]}))
    {'a': [1, 2.5, None, (True, 'x')]}
    >>> load_plain(pickle.dumps(print, protocol=2))
    Traceback (most recent call last):
        ...
    vramkit.simulate._plain_pickle.PlainPickleError: byte 2: instruction GLOBAL imports, calls or \
builds objects; only plain containers and scalars are admitted
    """
    return _Decoder(data).run()


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.objects = 0

    def run(self) -> Any:
        try:
            while (code := self._run_frequent()) != _STOP:
                _RARE[code](self)
            return self.stack.pop()
        except KeyError as err:
            raise self.error(f"instruction {err} is unknown or of protocol 0 or 1") from err
        except (IndexError, struct.error) as err:
            raise self.error("it ends too early or its values do not fit together") from err
        except UnicodeDecodeError as err:
            raise self.error(f"a text is damaged ({err})") from err

    def _run_frequent(self) -> int:
        """Run the instructions that make up nearly all of a snapshot; returns the first other.

        They are written out because calling a function for each takes three times as long. A
        value that the file's end cuts short shows at the next instruction: there is none.
        """
        data, at, memo, stack = self.data, self.at, self.memo, self.stack
        push = stack.append
        while True:
            code = data[at]
            at += 1
            if code == _MEMOIZE:
                memo.append(stack[-1])
            elif code == _LONG_BINGET:
                push(memo[int.from_bytes(data[at : at + 4], "little")])
                at += 4
            elif code == _BINGET:
                push(memo[data[at]])
                at += 1
            elif code == _LONG1:
                end = at + 1 + data[at]
                push(int.from_bytes(data[at + 1 : end], "little", signed=True))
                at = end
            elif code == _BININT1:
                push(data[at])
                at += 1
            elif code == _BININT:
                push(int.from_bytes(data[at : at + 4], "little", signed=True))
                at += 4
            elif code == _EMPTY_DICT:
                self.at = at
                self.count_object()
                push({})
            else:
                self.at = at
                return code

    def error(self, text: str) -> PlainPickleError:
        return PlainPickleError(f"byte {self.at}: {text}")

    def count_object(self) -> None:
        """Called for each instruction whose value takes much more memory than file."""
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise self.error(
                f"it holds more than the {MAX_OBJECTS:,} lists, dicts, tuples and texts admitted"
            )
        self.check_open_values()

    def check_open_values(self) -> None:
        if max(len(self.stack), len(self.marks)) > MAX_OPEN_VALUES:
            raise self.error(
                f"more than the {MAX_OPEN_VALUES:,} values admitted wait for their container"
            )

    def take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise self.error(f"it ends {self.at - len(self.data):,} bytes too early")
        return self.data[start : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def append_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise self.error(f"items are added to a {type(target).__name__}, not to a list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise self.error(f"entries are set in a {type(target).__name__}, not in a dict")
        keys = values[::2]
        if len(values) % 2:
            raise self.error("a dict has a key without a value")
        others = set(map(type, keys)) - {str}
        if others:
            raise self.error(f"a dict has a key of type {others.pop().__name__}, not a text")
        target.update(zip(keys, values[1::2], strict=True))


_Action = Callable[[_Decoder], None]


def _forbid(name: str) -> _Action:
    def refuse(decoder: _Decoder) -> None:
        decoder.at -= 1
        raise decoder.error(
            f"instruction {name} imports, calls or builds objects; only plain containers and "
            "scalars are admitted"
        )

    return refuse


def _constant(value: object) -> _Action:
    return lambda decoder: decoder.stack.append(value)


def _text(width: int) -> _Action:
    def push(decoder: _Decoder) -> None:
        decoder.count_object()
        content = decoder.take(decoder.number(width))
        decoder.stack.append(str(content, "utf-8", "surrogatepass"))

    return push


def _bytes(width: int) -> _Action:
    def push(decoder: _Decoder) -> None:
        decoder.count_object()
        decoder.stack.append(decoder.take(decoder.number(width)))

    return push


def _put(width: int) -> _Action:
    def put(decoder: _Decoder) -> None:
        entry, memo = decoder.number(width), decoder.memo
        if entry > len(memo):
            raise decoder.error(f"memo entry {entry:,} comes before entry {len(memo):,}")
        memo[entry : entry + 1] = [decoder.stack[-1]]

    return put


def _tuple(count: int) -> _Action:
    def push(decoder: _Decoder) -> None:
        decoder.count_object()
        values = tuple(decoder.stack[-count:])
        if len(values) != count:
            raise decoder.error("a tuple lacks values")
        decoder.stack[-count:] = [values]

    return push


def _mark(decoder: _Decoder) -> None:
    decoder.check_open_values()
    decoder.marks.append(len(decoder.stack))


def _skip(width: int) -> _Action:
    def skip(decoder: _Decoder) -> None:
        decoder.take(width)

    return skip


def _unsigned16(decoder: _Decoder) -> None:
    decoder.stack.append(decoder.number(2))


def _float(decoder: _Decoder) -> None:
    decoder.stack.append(_FLOAT64.unpack(decoder.take(8))[0])


def _empty_list(decoder: _Decoder) -> None:
    decoder.count_object()
    decoder.stack.append([])


def _append(decoder: _Decoder) -> None:
    decoder.append_items([decoder.stack.pop()])


def _appends(decoder: _Decoder) -> None:
    decoder.append_items(decoder.to_mark())


def _set_item(decoder: _Decoder) -> None:
    value, key = decoder.stack.pop(), decoder.stack.pop()
    decoder.set_items([key, value])


def _set_items(decoder: _Decoder) -> None:
    decoder.set_items(decoder.to_mark())


def _tuple_to_mark(decoder: _Decoder) -> None:
    decoder.count_object()
    decoder.stack.append(tuple(decoder.to_mark()))


_RARE: dict[int, _Action] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord(")"): _constant(()),
    ord("M"): _unsigned16,
    ord("G"): _float,
    0x8C: _text(1),
    ord("X"): _text(4),
    0x8D: _text(8),
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    0x8E: _bytes(8),
    ord("("): _mark,
    ord("t"): _tuple_to_mark,
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("]"): _empty_list,
    ord("a"): _append,
    ord("e"): _appends,
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("q"): _put(1),
    ord("r"): _put(4),
    # Named, so that a refused file says what it tried.
    ord("c"): _forbid("GLOBAL"),
    0x93: _forbid("STACK_GLOBAL"),
    ord("R"): _forbid("REDUCE"),
    ord("b"): _forbid("BUILD"),
    ord("i"): _forbid("INST"),
    ord("o"): _forbid("OBJ"),
    0x81: _forbid("NEWOBJ"),
    0x92: _forbid("NEWOBJ_EX"),
    ord("P"): _forbid("PERSID"),
    ord("Q"): _forbid("BINPERSID"),
    0x82: _forbid("EXT1"),
    0x83: _forbid("EXT2"),
    0x84: _forbid("EXT4"),
}
