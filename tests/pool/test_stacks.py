import ctypes
import inspect
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.pools import MIB, run_script

from vramkit import MemoryPool
from vramkit._core import StackHook
from vramkit.pool._stacks import StackRecorder

HERE = Path(__file__).name


def _through_a_callback(recorder: StackRecorder) -> int:
    return StackHook(recorder.capture)()


def _text(recorder: StackRecorder, stack_id: int) -> str:
    return ctypes.string_at(recorder.text_address(stack_id)).decode()


def test_a_stack_names_file_line_and_function_innermost_first() -> None:
    recorder = StackRecorder()
    stack_id = _through_a_callback(recorder)
    frames = recorder.frames(stack_id)
    assert frames[0].endswith(" in _through_a_callback")
    line = inspect.currentframe().f_lineno - 3  # type: ignore[union-attr]
    name = test_a_stack_names_file_line_and_function_innermost_first.__name__
    assert frames[1] == f"{__file__}:{line} in {name}"
    assert f"{HERE}:{line} in {name} <- " in _text(recorder, stack_id)


def test_equal_stacks_share_a_number_and_others_do_not() -> None:
    recorder = StackRecorder()
    same = [_through_a_callback(recorder) for _ in range(3)]
    other = _through_a_callback(recorder)
    assert len(set(same)) == 1
    assert other not in same
    assert 0 not in (*same, other)


def test_a_thread_without_python_frames() -> None:
    recorder = StackRecorder()
    ids: list[int] = []

    def note() -> int:
        # What a thread that Python did not start looks like: nothing above the callback.
        recorder._stacks[1] = ()
        ids.append(1)
        return 1

    StackHook(note)()
    assert recorder.frames(1) == ("no Python frames (an autograd or worker thread)",)
    assert _text(recorder, 1) == "no Python frames (an autograd or worker thread)"


def test_unknown_numbers_have_no_text() -> None:
    recorder = StackRecorder()
    assert recorder.text_address(5) == 0
    assert recorder.frames(0) == ()


def test_reentry_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = StackRecorder()
    inner: list[int] = []
    capture = recorder._capture

    def capture_and_allocate() -> int:
        inner.append(recorder.capture())
        return capture()

    monkeypatch.setattr(recorder, "_capture", capture_and_allocate)
    assert _through_a_callback(recorder) > 0
    assert inner == [0]
    assert _through_a_callback(recorder) > 0


def test_ctrl_c_inside_the_callback_is_raised_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = StackRecorder()

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "_capture", interrupted)
    # A process that was started in the background may ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    waiting = threading.Event()
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # raised some moment after the call
            assert _through_a_callback(recorder) == 0
            waiting.wait(60)
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_agree_on_numbers() -> None:
    recorder = StackRecorder()
    ids: list[set[int]] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        ids.append({_through_a_callback(recorder) for _ in range(200)})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set.union(*ids)) == 1


def test_the_snapshot_and_the_explanation_name_the_user_s_line() -> None:
    pool = MemoryPool("64MiB", device="cpu", record_stacks=True)
    with pool:
        big = torch.empty(40 * MIB, dtype=torch.uint8)
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        here = f"{HERE}:{line} in test_the_snapshot_and_the_explanation_name_the_user_s_line"
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(30 * MIB, dtype=torch.uint8)
    assert here in str(caught.value)
    block = next(block for block in pool.snapshot() if block.address == big.data_ptr())
    assert block.requested_bytes == 40 * MIB
    assert here in block.stack[0]


def test_autograd_s_threads_are_recorded() -> None:
    pool = MemoryPool("64MiB", device="cpu", record_stacks=True)
    with pool:
        weight = torch.ones(1000, requires_grad=True)
        threading.Thread(target=lambda: (weight * 3).sum().backward()).start()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    assert weight.grad is not None
    grad = weight.grad.data_ptr()
    block = next(block for block in pool.snapshot() if block.address == grad)
    assert block.stack


def test_without_record_stacks_there_are_none(pool: MemoryPool) -> None:
    with pool:
        kept = torch.empty(1000)
    assert kept.numel() == 1000
    assert all(block.stack == () for block in pool.snapshot())


ALLOCATING_THREAD = """
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>
#include "bind/vramkit.h"
static const vramkit_core_api* api;
static volatile int rounds;
static void* work(void* unused) {
  for (;; ++rounds) {
    void* address;
    uint64_t size;
    vramkit_pool* overflowed;
    usleep(200);
    if (api->route_alloc(VRAMKIT_DEVICE_CPU, 5000, 0, 0, &address, &overflowed) == VRAMKIT_OK)
      api->route_free(address, &size);
  }
  return unused;
}
void start(const vramkit_core_api* core) {
  pthread_t thread;
  api = core;
  pthread_create(&thread, 0, work, 0);
}
int rounds_done(void) { return rounds; }
"""


def test_the_interpreter_ends_while_native_threads_allocate(tmp_path: Path) -> None:
    source, built = tmp_path / "thread.c", tmp_path / "thread.so"
    source.write_text(ALLOCATING_THREAD)
    csrc = Path(__file__).parents[2] / "csrc"
    command = ["cc", "-shared", "-fPIC", "-pthread", f"-I{csrc}", str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    run_script(
        """
        import ctypes, sys, time, vramkit
        from vramkit._core import library
        pool = vramkit.MemoryPool("128MiB", device="cpu", record_stacks=True)
        pool.__enter__()
        native = ctypes.CDLL(sys.argv[1])
        for _ in range(2):
            native.start(library().vramkit_core())
        while native.rounds_done() < 100:
            time.sleep(0.001)
        held = pool.snapshot()
        """,
        str(built),
    )


def test_a_forked_child_ends_like_its_parent() -> None:
    run_script(
        """
        import os, sys, torch, vramkit
        pool, closed = (
            vramkit.MemoryPool("64MiB", device="cpu", record_stacks=True) for _ in range(2)
        )
        closed.close()
        with pool:
            kept = torch.ones(1000)
            child = os.fork()
            made = torch.ones(1000)
        if child:
            assert os.waitpid(child, 0) == (child, 0)
        sys.exit(0)
        """
    )


def test_a_deep_stack_is_cut() -> None:
    recorder = StackRecorder()

    def dive(depth: int) -> int:
        return dive(depth - 1) if depth else _through_a_callback(recorder)

    frames = recorder.frames(dive(min(100, sys.getrecursionlimit() // 2)))
    assert len(frames) == 32
