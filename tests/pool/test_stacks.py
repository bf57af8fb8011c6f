import inspect
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.pools import MIB, run_script

from vramkit import MemoryPool
from vramkit._core import BlockState, frames, stacks_kept

HERE = Path(__file__).name


@pytest.fixture
def recording() -> MemoryPool:
    return MemoryPool("64MiB", device="cpu", record_stacks=True)


def _stack_of(pool: MemoryPool, tensor: torch.Tensor) -> tuple[str, ...]:
    address = tensor.data_ptr()
    return next(block.stack for block in pool.snapshot() if block.address == address)


def _ids(pool: MemoryPool) -> list[int]:
    return [block.stack_id for block in pool._core.snapshot() if block.state == BlockState.LIVE]


def _explanation(pool: MemoryPool) -> str:
    with pytest.raises(torch.OutOfMemoryError) as caught, pool:
        torch.empty(1 << 40)
    return str(caught.value)


def _make() -> torch.Tensor:
    return torch.empty(1000)


def test_a_stack_names_file_line_and_function_innermost_first(recording: MemoryPool) -> None:
    with recording:
        made = _make()
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    frames = _stack_of(recording, made)
    assert frames[0].endswith(" in _make")
    name = test_a_stack_names_file_line_and_function_innermost_first.__name__
    assert frames[1] == f"{__file__}:{line} in {name}"
    assert f" in _make <- {__file__}:{line} in {name} <- " in _explanation(recording)


def test_equal_stacks_share_a_number_and_others_do_not(recording: MemoryPool) -> None:
    with recording:
        kept = [_make() for _ in range(3)]
        assert len(set(_ids(recording))) == 1
        kept.append(_make())
    assert len(set(_ids(recording))) == 2
    assert 0 not in _ids(recording)
    assert len(kept) == 4


def test_unknown_numbers_have_no_frames() -> None:
    assert frames(0) == ()
    assert frames(2**32 - 2) == ()


def test_threads_agree_on_numbers(recording: MemoryPool) -> None:
    kept: list[torch.Tensor] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        kept.extend(_make() for _ in range(200))

    with recording:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(kept) == 800
    assert len(set(_ids(recording))) == 1


def test_library_s_frames_are_left_out_where_there_are_others(recording: MemoryPool) -> None:
    with recording:
        made = torch.nn.Linear(10, 10)
    assert "/torch/nn/" in _stack_of(recording, made.weight)[0]
    assert "/torch/nn/" not in _explanation(recording)
    assert f"{__file__}:" in _explanation(recording)


def test_code_that_is_gone_is_still_named(recording: MemoryPool) -> None:
    names: dict[str, object] = {"torch": torch}
    with recording:
        exec(compile("\nkept = torch.empty(1000)", "gone.py", "exec"), names)
    assert isinstance(names["kept"], torch.Tensor)
    assert _stack_of(recording, names["kept"])[0] == "gone.py:2 in <module>"


def test_a_file_name_that_is_no_text_is_escaped(recording: MemoryPool) -> None:
    names: dict[str, object] = {"torch": torch}
    code = compile("kept = torch.empty(1000)", "caf\udce9.py", "exec")
    with recording:
        exec(code, names)
    assert isinstance(names["kept"], torch.Tensor)
    assert _stack_of(recording, names["kept"])[0] == r"caf\udce9.py:1 in <module>"
    assert r"caf\udce9.py:1 in <module>" in _explanation(recording)


def test_the_explanation_at_the_recursion_limit(recording: MemoryPool) -> None:
    with recording:
        kept = _make()

    def explain() -> str:
        try:
            torch.empty(1 << 40)
        except torch.OutOfMemoryError as err:
            return str(err)
        raise AssertionError

    def dive() -> str:
        try:
            return dive()
        except RecursionError:
            # Where this does not fit either, the caller tries one frame above.
            return explain()

    with recording:
        text = dive()
    assert f"{HERE}:" in text
    assert kept.numel() == 1000


def test_no_exception_of_a_signal_handler_is_lost() -> None:
    run_script(
        """
        import signal, torch, vramkit

        handled = 0

        def expire(*unused):
            global handled
            handled += 1
            raise TimeoutError

        def allocate_until_interrupted(pool):
            signal.setitimer(signal.ITIMER_REAL, 2e-3)
            with pool:
                while True:
                    torch.empty(100)

        def refuse_until_interrupted(pool):
            signal.setitimer(signal.ITIMER_REAL, 2e-3)
            with pool:
                while True:
                    try:
                        torch.empty(1 << 40)
                    except torch.OutOfMemoryError:
                        pass

        signal.signal(signal.SIGALRM, expire)
        pool = vramkit.MemoryPool("8MiB", device="cpu", record_stacks=True)
        with pool:
            kept = torch.empty(1000)
        for work in (allocate_until_interrupted, refuse_until_interrupted):
            for caught in range(200):
                try:
                    work(pool)
                except TimeoutError:
                    pass
        assert handled == 400, handled
        """
    )


def test_ctrl_c_during_an_allocation_is_raised_once() -> None:
    run_script(
        """
        import signal, torch, vramkit
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pool = vramkit.MemoryPool("8MiB", device="cpu", record_stacks=True)
        raised = 0
        with pool:
            for _ in range(1000):
                try:
                    signal.raise_signal(signal.SIGINT)
                    torch.empty(1000)
                except KeyboardInterrupt:
                    raised += 1
        assert raised == 1000, raised
        """
    )


def test_stacks_of_code_that_is_gone_are_forgotten(recording: MemoryPool) -> None:
    def make(number: int) -> torch.Tensor:
        names: dict[str, object] = {"torch": torch}
        exec(compile("kept = torch.empty(10)", f"made-{number}.py", "exec"), names)
        assert isinstance(names["kept"], torch.Tensor)
        return names["kept"]

    with recording:
        kept = {number: make(number) for number in range(0, 20_000, 400)}
        most = 0
        for number in range(20_000, 120_000):
            make(number)
            most = max(most, stacks_kept())
    # No more than the fewest that are worth a look, and those that live blocks of all pools have.
    assert most < 10_000
    for number, tensor in kept.items():
        assert _stack_of(recording, tensor)[0] == f"made-{number}.py:1 in <module>"


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
        thread = threading.Thread(target=lambda: (weight * 3).sum().backward())
        thread.start()
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
#include <string.h>
#include <unistd.h>
#include "bind/c/vramkit.h"
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
static vramkit_status answers[2];
static char told[4096];
static void* work_once(void* unused) {
  void* address;
  vramkit_pool* overflowed;
  answers[0] = api->route_alloc(VRAMKIT_DEVICE_CPU, 5000, 0, 0, &address, &overflowed);
  answers[1] = api->route_alloc(VRAMKIT_DEVICE_CPU, 1u << 30, 0, 0, &address, &overflowed);
  strncpy(told, api->last_error(), sizeof told - 1);
  return unused;
}
const char* allocate_and_wait(const vramkit_core_api* core) {
  pthread_t thread;
  api = core;
  pthread_create(&thread, 0, work_once, 0);
  pthread_join(thread, 0);
  return answers[0] == VRAMKIT_OK && answers[1] == VRAMKIT_OUT_OF_MEMORY ? told : 0;
}
"""


def _built(folder: Path) -> Path:
    source, built = folder / "thread.c", folder / "thread.so"
    source.write_text(ALLOCATING_THREAD)
    csrc = Path(__file__).parents[2] / "csrc"
    command = ["cc", "-shared", "-fPIC", "-pthread", f"-I{csrc}", str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    return built


def test_a_native_thread_never_waits_for_the_gil(tmp_path: Path) -> None:
    """C++ extensions hold it while they wait for their own threads."""
    run_script(
        """
        import ctypes, sys, torch, vramkit
        from vramkit._core import library
        pool = vramkit.MemoryPool("64MiB", device="cpu", record_stacks=True)
        native = ctypes.PyDLL(sys.argv[1])  # keeps the GIL
        native.allocate_and_wait.restype = ctypes.c_char_p
        with pool:
            mine = torch.empty(4 << 20)
            told = native.allocate_and_wait(library().vramkit_core())
        assert b"is out of memory" in told, told
        [block] = [block for block in pool.snapshot() if block.requested_bytes == 5000]
        assert "no Python frames" in block.stack[0], block
        """,
        str(_built(tmp_path)),
        timeout_s=60,
    )


def test_the_interpreter_ends_while_native_threads_allocate(tmp_path: Path) -> None:
    built = _built(tmp_path)
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


def test_a_deep_stack_is_cut(recording: MemoryPool) -> None:
    def dive(depth: int) -> torch.Tensor:
        return dive(depth - 1) if depth else _make()

    with recording:
        made = dive(min(100, sys.getrecursionlimit() // 2))
    assert len(_stack_of(recording, made)) == 32
