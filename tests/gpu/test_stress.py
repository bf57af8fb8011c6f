"""Patterns over eight streams: no live block shares a byte with another, or with pending work.

Every block is filled on the stream that allocated it, perhaps used on a second stream, and checked
on the device right before it is freed. For a long run, or under compute-sanitizer, set
VRAMKIT_STRESS_STEPS.
"""

import gc
import os
import random
import weakref
from types import FrameType

import pytest
import torch
from helpers.gpu import bytes_on_gpu
from helpers.pools import MIB, is_in
from helpers.seeds import stress_seed

from vramkit import MemoryPool
from vramkit._ops import count_mismatches, fill_pattern_

STEPS = int(os.environ.get("VRAMKIT_STRESS_STEPS", "3000"))
STREAMS = 8


class _Run:
    def __init__(self, pool: MemoryPool, seed: int) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.streams = [torch.cuda.Stream() for _ in range(STREAMS)]
        self.live: list[tuple[torch.Tensor, int, torch.cuda.Stream]] = []
        self.wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in self.streams]
        self.refused = 0
        self.next_seed = 0
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def allocate(self) -> None:
        stream = self.random.choice(self.streams)
        size = int(2 ** self.random.uniform(8, 25.5))
        with torch.cuda.stream(stream):
            try:
                tensor = bytes_on_gpu(size)
            except torch.OutOfMemoryError:
                self.refused += 1
                for _ in range(1 + len(self.live) // 2):
                    self.free()
                return
            assert is_in(self.pool, tensor)
            self.next_seed += 1
            fill_pattern_(tensor, seed=self.next_seed)
        self.live.append((tensor, self.next_seed, stream))
        self.seen.append(weakref.ref(tensor))

    def free(self) -> None:
        if not self.live:
            return
        tensor, seed, stream = self.live.pop(self.random.randrange(len(self.live)))
        index = self.streams.index(stream)
        if self.random.random() < 0.3:
            other = self.random.randrange(STREAMS)
            if other != index:
                self.streams[other].wait_stream(stream)
                tensor.record_stream(self.streams[other])
                index = other
        with torch.cuda.stream(self.streams[index]):
            if self.random.random() < 0.05:
                torch.cuda._sleep(2_000_000)
            # The pool may be full to the last byte.
            with self.pool.outside():
                self.wrong[index] += count_mismatches(tensor, seed=seed)

    def finish(self) -> int:
        while self.live:
            self.free()
        torch.cuda.synchronize()
        return sum(int(count) for count in self.wrong)

    def holders(self) -> list[str]:
        """Who still holds tensors that were dropped here: their frees cannot have come yet."""
        found = []
        for reference in self.seen:
            tensor = reference()
            if tensor is None:
                continue
            others = [
                type(each).__name__
                for each in gc.get_referrers(tensor)
                if not isinstance(each, FrameType)
            ]
            found.append(f"{tensor.numel()} bytes: {others or 'nobody in Python'}")
        return found


@pytest.mark.parametrize("page", ["2MiB", "4MiB"])
def test_patterns_over_eight_streams(page: str) -> None:
    seed = stress_seed()
    pool = MemoryPool("256MiB", device="cuda", page_bytes=page)
    run = _Run(pool, seed)
    torch.cuda.synchronize()
    with pool:
        for step in range(STEPS):
            if run.random.random() < 0.55:
                run.allocate()
            else:
                run.free()
            if step % 500 == 499:
                pool._core.check()
            if step % 1000 == 999:
                pool.trim()
        wrong = run.finish()
    assert wrong == 0
    assert run.holders() == []
    stats = pool.stats()
    assert stats.live_blocks == 0
    if STEPS >= 3000:
        assert stats.peak_live_bytes > 150 * MIB
        assert stats.stitched_requests > 0
        assert stats.cross_stream_waits > 0
        assert run.refused > 0
    pool._core.check()
    pool.close()
