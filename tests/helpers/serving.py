"""The allocations of a language model that several threads serve, each on a stream of its own."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vramkit.simulate import Events

_VOCABULARY = 32_000
_HIDDEN, _INNER, _KEYS = 2048, 5632, 512

# (block, bytes) allocates, (block, 0) frees.
_Event = tuple[int, int]


@dataclass(frozen=True)
class Serving:
    """What is served: ``lanes`` threads answer ``requests`` each, layer by layer.

    Attributes:
        burst: Most events of one thread in a row.
        one_stream: The threads share a stream.
    """

    seed: int
    lanes: int = 4
    requests: int = 2
    rounds: int = 3
    layers: int = 16
    new_tokens: int = 12
    burst: int = 40
    one_stream: bool = False


def serving_events(what: Serving) -> Events:
    """Weights on stream 0, then rounds in which the threads' events interleave at random."""
    draw = random.Random(what.seed)
    ids = iter(range(1 << 40))
    rows = [(next(ids), size, 0) for size in _weights(what.layers)]
    for _ in range(what.rounds):
        lanes = {lane: _Requests(what, draw, ids).events() for lane in range(what.lanes)}
        while lanes:
            lane = draw.choice(list(lanes))
            stream = 0 if what.one_stream else lane + 1
            for _ in range(draw.randrange(1, what.burst + 1)):
                event = next(lanes[lane], None)
                if event is None:
                    del lanes[lane]
                    break
                rows.append((*event, stream))
    return _as_events(rows)


def _weights(layers: int) -> list[int]:
    layer = [_HIDDEN * _HIDDEN] * 2 + [_HIDDEN * _KEYS] * 2 + [_HIDDEN * _INNER] * 3
    return [2 * count for count in [_VOCABULARY * _HIDDEN] * 2 + layer * layers]


class _Requests:
    """One thread's requests: a prompt, then token after token with growing keys and values."""

    def __init__(self, what: Serving, draw: random.Random, ids: Iterator[int]) -> None:
        self._what = what
        self._ids = ids
        self._shapes = [
            (draw.randrange(1, 9), draw.randrange(128, 2048)) for _ in range(what.requests)
        ]
        self._pending: list[_Event] = []

    def events(self) -> Iterator[_Event]:
        """Every allocation and free, in the thread's order."""
        for count, length in self._shapes:
            kept: list[list[int]] = [[] for _ in range(self._what.layers)]
            for token in range(self._what.new_tokens):
                rows = count * (length if token == 0 else 1)
                hidden = self._make(rows * _HIDDEN * 2)
                for layer in range(self._what.layers):
                    cached_bytes = count * (length + token) * _KEYS * 2
                    kept[layer] = self._attend(rows, kept[layer], cached_bytes)
                    hidden = self._transform(rows, hidden)
                    yield from self._flush()
                self._drop(hidden)
                self._drop(self._make(count * _VOCABULARY * 2), self._make(count * _VOCABULARY * 4))
                yield from self._flush()
            self._drop(*(block for layer_blocks in kept for block in layer_blocks))
            yield from self._flush()

    def _attend(self, rows: int, kept: list[int], cached_bytes: int) -> list[int]:
        queries, keys, values = (self._make(rows * n * 2) for n in (_HIDDEN, _KEYS, _KEYS))
        grown = []
        for at in range(2):
            grown.append(self._make(cached_bytes))
            self._drop(*kept[at : at + 1])
        self._drop(keys, values)
        out = self._make(rows * _HIDDEN * 2)
        self._drop(queries, out)
        return grown

    def _transform(self, rows: int, hidden: int) -> int:
        gate = self._make(rows * _INNER * 2)
        activated = self._make(rows * _INNER * 2)
        self._drop(gate)
        up = self._make(rows * _INNER * 2)
        product = self._make(rows * _INNER * 2)
        self._drop(up, activated)
        out = self._make(rows * _HIDDEN * 2)
        self._drop(product, hidden)
        return out

    def _make(self, size_bytes: int) -> int:
        block = next(self._ids)
        self._pending.append((block, size_bytes))
        return block

    def _drop(self, *blocks: int) -> None:
        self._pending += [(block, 0) for block in blocks]

    def _flush(self) -> Iterator[_Event]:
        events, self._pending = self._pending, []
        yield from events


def _as_events(rows: list[tuple[int, int, int]]) -> Events:
    block, size, stream = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    op = (size == 0).astype(np.uint8)
    # Numbers in the order of allocation, and a free's size is its block's.
    made = block[op == 0]
    number = np.empty(int(block.max()) + 1, dtype=np.int64)
    number[made] = np.arange(len(made))
    block_id = number[block]
    return Events(
        op=op,
        block_id=block_id,
        size_bytes=size[op == 0][block_id],
        stream=stream.astype(np.int32),
        index=np.arange(len(rows)),
        block_count=len(made),
        standing_blocks=0,
    )
