"""Exceptions of signal handlers at any moment: no scope and no pool stays open."""

import os

import pytest
from helpers.pools import run_script

# Rounds of each loop; the long run of a release takes many more.
ROUNDS = os.environ.get("VRAMKIT_INTERRUPTS", "2000")

PREAMBLE = """
import ctypes, gc, random, signal, sys
import torch, vramkit
from vramkit._core import active_pool, library

class Interrupt(Exception):
    pass

def raise_interrupt(*unused):
    raise Interrupt

def open_pools():
    count = ctypes.c_uint64()
    assert library().vramkit_device_pools(-1, None, 0, ctypes.byref(count)) == 0
    return count.value

def interrupted(work, check, longest_s=300e-6):
    # Raises in the midst of work(), again and again.
    for _ in range(int(sys.argv[1])):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, longest_s))
            while True:
                work()
        except Interrupt:
            pass
        check()

signal.signal(signal.SIGALRM, raise_interrupt)
random.seed(int(sys.argv[1]))
pool = vramkit.MemoryPool("4MiB", device="cpu")

expected = 0

def no_scope_is_open():
    assert active_pool() == expected
"""

LOOPS = {
    "with": """
def work():
    with pool:
        pass
""",
    "nested": """
def work():
    with pool, pool.outside(), pool:
        with pool:
            pass
""",
    "outside": """
pool.__enter__()
expected = pool._core.handle

def work():
    with pool.outside():
        pass
""",
    "decorator": """
@pool
def work():
    return 5
""",
    "outside as a decorator": """
pool.__enter__()
expected = pool._core.handle

@pool.outside()
def work():
    return 5
""",
    "allocations": """
def work():
    with pool:
        torch.empty(1000)
""",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_no_scope_stays_open(loop: str) -> None:
    run_script(PREAMBLE + LOOPS[loop] + "interrupted(work, no_scope_is_open)\n", ROUNDS)


def test_no_pool_stays_open() -> None:
    run_script(
        PREAMBLE
        + """
def work():
    vramkit.MemoryPool("4MiB", device="cpu")

def one_pool_is_open():
    if open_pools() > 1:
        gc.collect()
    assert open_pools() == 1

work()
interrupted(work, one_pool_is_open, longest_s=2e-3)
""",
        str(min(int(ROUNDS), 500)),
    )


def test_a_handler_makes_a_pool_while_one_is_made() -> None:
    run_script(
        """
        import signal, threading, vramkit
        from vramkit.pool import _adapter
        install = _adapter._install

        def install_and_interrupt(path):
            signal.raise_signal(signal.SIGALRM)
            return install(path)

        def make_another(*unused):
            _adapter._install = install
            made.append(vramkit.MemoryPool("4MiB", device="cpu"))

        made = []
        _adapter._install = install_and_interrupt
        signal.signal(signal.SIGALRM, make_another)
        made.append(vramkit.MemoryPool("4MiB", device="cpu"))
        assert len(made) == 2
        """,
        timeout_s=60,
    )


def test_the_interpreter_ends_while_daemon_threads_enter_and_leave() -> None:
    # Without tensors: PyTorch itself aborts when the interpreter ends while a daemon thread is in
    # one of its operators.
    run_script(
        """
        import threading, time, vramkit
        pool = vramkit.MemoryPool("64MiB", device="cpu", record_stacks=True)
        def work():
            while True:
                with pool, pool.outside(), pool:
                    pass
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        """
    )
