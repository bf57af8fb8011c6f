"""Which scope routes, and who ends it."""

import asyncio
import contextlib
import functools
import gc
import threading
from collections.abc import Callable

import pytest
import torch
from helpers.pools import is_in, is_native

from vramkit import MemoryPool
from vramkit._core import open_tokens
from vramkit.errors import ArgumentTypeError, PoolBusyError, PoolClosedError, ScopeError


@pytest.fixture
def other() -> MemoryPool:
    return MemoryPool("64MiB", device="cpu")


def _in_thread(work: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as err:  # noqa: BLE001  # told to the test's own thread
            failures.append(err)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _require_native(tensor: torch.Tensor) -> None:
    assert is_native(tensor)


def test_only_inside_the_scope(pool: MemoryPool) -> None:
    before = torch.empty(1000)
    with pool:
        inside = torch.empty(1000)
    after = torch.empty(1000)
    assert is_native(before)
    assert is_in(pool, inside)
    assert is_native(after)


def test_enter_returns_the_pool(pool: MemoryPool) -> None:
    with pool as entered:
        assert entered is pool


def test_nesting_the_latest_wins(pool: MemoryPool, other: MemoryPool) -> None:
    with pool:
        with other:
            assert is_in(other, torch.empty(1000))
            with pool:
                assert is_in(pool, torch.empty(1000))
            assert is_in(other, torch.empty(1000))
        assert is_in(pool, torch.empty(1000))
    assert is_native(torch.empty(1000))


def test_outside(pool: MemoryPool, other: MemoryPool) -> None:
    with pool:
        with pool.outside():
            assert is_native(torch.empty(1000))
            _in_thread(lambda: _require_native(torch.empty(1000)))
            with other:
                assert is_in(other, torch.empty(1000))
            assert is_native(torch.empty(1000))
        assert is_in(pool, torch.empty(1000))
        with pytest.raises(ZeroDivisionError), other.outside():
            raise ZeroDivisionError
        assert is_in(pool, torch.empty(1000))
    with pool.outside():
        assert is_native(torch.empty(1000))


def test_outside_as_a_decorator(pool: MemoryPool) -> None:
    @pool.outside()
    def make() -> torch.Tensor:
        return torch.empty(1000)

    with pool:
        assert is_native(make())
        assert is_native(make())
        assert is_in(pool, torch.empty(1000))


def test_reentry(pool: MemoryPool) -> None:
    with pool, pool:
        assert is_in(pool, torch.empty(1000))
    assert is_native(torch.empty(1000))


def test_other_threads_are_routed_too(pool: MemoryPool) -> None:
    made: list[torch.Tensor] = []
    with pool:
        _in_thread(lambda: made.append(torch.empty(1000)))
    assert is_in(pool, made[0])


def test_any_order_of_leaving(pool: MemoryPool, other: MemoryPool) -> None:
    pool.__enter__()
    other.__enter__()
    pool.__exit__(None, None, None)
    assert is_in(other, torch.empty(1000))
    other.__exit__(None, None, None)
    assert is_native(torch.empty(1000))


def test_left_by_another_thread(pool: MemoryPool) -> None:
    pool.__enter__()
    _in_thread(lambda: pool.__exit__(None, None, None))
    assert is_native(torch.empty(1000))


def test_scopes_that_others_leave_are_forgotten(pool: MemoryPool) -> None:
    for _ in range(5):
        pool.__enter__()
        _in_thread(lambda: pool.__exit__(None, None, None))
    with pool:
        assert len(open_tokens.get()) == 1
        assert pool._core.open_scopes() == 1
    assert pool._core.open_scopes() == 0


def test_each_thread_ends_its_own_scope(pool: MemoryPool, other: MemoryPool) -> None:
    """Main enters the pool, a thread enters other then pool; main leaves: other stays below."""
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with pool:
            entered.set()
            assert leave.wait(60)

    pool.__enter__()
    other.__enter__()
    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(60)
    # The pool's latest scope is the thread's. Ending that one would route to `other`.
    pool.__exit__(None, None, None)
    assert is_in(pool, torch.empty(1000))
    leave.set()
    thread.join()
    assert is_in(other, torch.empty(1000))
    other.__exit__(None, None, None)


def test_many_threads_enter_and_leave(pool: MemoryPool, other: MemoryPool) -> None:
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(300):
            with pool:
                kept = torch.ones(100)
                with other:
                    kept = kept + 1
                assert kept[99] == 2

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_native(torch.empty(1000))
    gc.collect()
    assert (pool.stats().live_blocks, other.stats().live_blocks) == (0, 0)


def test_tasks_of_one_thread_end_their_own_scopes(pool: MemoryPool, other: MemoryPool) -> None:
    """Interleaved tasks: A enters pool, B enters pool, other is entered between, A leaves."""

    async def main() -> None:
        a_entered, b_entered, a_left = (asyncio.Event() for _ in range(3))

        async def task_a() -> None:
            with pool:
                a_entered.set()
                await b_entered.wait()
            a_left.set()

        async def task_b() -> None:
            await a_entered.wait()
            with other, pool:
                b_entered.set()
                await a_left.wait()
                assert is_in(pool, torch.empty(1000))

        await asyncio.gather(task_a(), task_b())

    asyncio.run(main())
    assert is_native(torch.empty(1000))


def test_leaving_what_was_not_entered(pool: MemoryPool) -> None:
    with pytest.raises(RuntimeError, match="__exit__ without __enter__: no scope is open"):
        pool.__exit__(None, None, None)


def test_an_exception_ends_the_scope_and_passes(pool: MemoryPool) -> None:
    def fail() -> None:
        with pool:
            assert is_in(pool, torch.empty(1000))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert is_native(torch.empty(1000))


def test_exit_stack(pool: MemoryPool, other: MemoryPool) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(pool)
        stack.enter_context(other)
        assert is_in(other, torch.empty(1000))
    assert is_native(torch.empty(1000))


def test_decorator(pool: MemoryPool) -> None:
    @pool
    def make(size: int, *, fill: float) -> torch.Tensor:
        """Makes."""
        return torch.full((size,), fill)

    made = make(1000, fill=3.0)
    assert is_in(pool, made)
    assert made[0] == 3
    assert (make.__name__, make.__doc__) == ("make", "Makes.")
    assert is_native(torch.empty(1000))


def test_decorator_recursive_and_raising(pool: MemoryPool) -> None:
    @pool
    def depth(left: int) -> torch.Tensor:
        if left == 0:
            return torch.empty(1000)
        inner = depth(left - 1)
        assert is_in(pool, torch.empty(1000))
        return inner

    @pool
    def fail() -> None:
        raise ValueError("mine")

    assert is_in(pool, depth(5))
    with pytest.raises(ValueError, match="mine"):
        fail()
    assert is_native(torch.empty(1000))


def test_decorated_coroutine(pool: MemoryPool) -> None:
    @pool
    async def make() -> torch.Tensor:
        await asyncio.sleep(0)
        return torch.empty(1000)

    assert is_in(pool, asyncio.run(make()))  # type: ignore[arg-type]
    assert is_native(torch.empty(1000))


def test_decorated_generators_are_refused(pool: MemoryPool) -> None:
    with pytest.raises(TypeError, match=r"numbers is a generator: .* use `with pool:` inside it"):

        @pool
        def numbers():  # type: ignore[no-untyped-def]
            yield 1


def test_a_partial_generator_is_a_generator(pool: MemoryPool) -> None:
    def numbers(last: int):  # type: ignore[no-untyped-def]
        yield last

    async def anumbers(last: int):  # type: ignore[no-untyped-def]
        yield last

    for generator in (numbers, anumbers):
        partial = functools.partial(functools.partial(generator), 5)
        with pytest.raises(TypeError, match=r"numbers is a generator: .* use `with pool:` inside"):
            pool(partial)


class _Callable:
    def __call__(self) -> int:
        return 5

    @staticmethod
    def static() -> int:
        return 5

    @classmethod
    def of_class(cls) -> int:
        return 5

    def method(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("decorated", "text"),
    [
        (_Callable, "_Callable is a class, .* decorate its methods"),
        (_Callable(), "of type _Callable, which would lose everything but its call"),
        (torch.nn.Linear(2, 2), "of type Linear, .* call it inside `with pool:`"),
        (functools.partial(_Callable()), "of type _Callable, which would lose"),
        (functools.partial(torch.nn.Linear, 2), "Linear is a class"),
        (vars(_Callable)["static"], "static is a staticmethod already: write @staticmethod above"),
        (vars(_Callable)["of_class"], "of_class is a classmethod already"),
        (torch, "of type module"),
        (5, "got 5 of type int"),
    ],
)
def test_what_is_more_than_a_function_is_refused(
    pool: MemoryPool, decorated: object, text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        pool(decorated)  # type: ignore[arg-type]


def _uncached(size: int) -> torch.Tensor:
    return torch.empty(size)


@pytest.mark.parametrize("cache", [functools.cache, functools.lru_cache(maxsize=3)])
def test_a_cached_function_is_refused(
    pool: MemoryPool, cache: Callable[[object], Callable[[int], torch.Tensor]]
) -> None:
    with pytest.raises(ArgumentTypeError, match=r"_uncached keeps .*@functools\.cache .* above"):
        pool(cache(_uncached))


def test_every_kind_of_function_is_decorated(pool: MemoryPool) -> None:
    made = [
        pool(functools.partial(torch.empty, 1000))(),
        pool(lambda: torch.empty(1000))(),
        pool(torch.empty)(1000),
        functools.cache(pool(_uncached))(1000),
        pool(torch.ones(1000).clone)(),
        pool(torch.Tensor.clone)(torch.ones(1000)),
    ]
    assert [is_in(pool, tensor) for tensor in made] == [True] * len(made)
    assert pool(_Callable().method)() == 5


def test_a_closed_pool_cannot_be_entered() -> None:
    closed = MemoryPool("64MiB", device="cpu")
    closed.close()
    with pytest.raises(PoolClosedError), closed:
        pass
    assert is_native(torch.empty(1000))


def test_close_inside_the_scope_is_refused(pool: MemoryPool) -> None:
    with pool:
        with pytest.raises(PoolBusyError, match=r"the pool has 1 open scope, so"):
            pool.close()
        assert is_in(pool, torch.empty(1000))


def test_close_names_the_way_out_of_each_open_scope(pool: MemoryPool) -> None:
    pool.activate()
    with pytest.raises(PoolBusyError, match=r"1 open scope, .*; call `pool.deactivate\(\)` before"):
        pool.close()
    with pool:
        both = r"call `pool.deactivate\(\)` and leave the `with` block before close"
        with pytest.raises(PoolBusyError, match=both):
            pool.close()
        pool.deactivate()
        with pool, pytest.raises(PoolBusyError, match="; leave the `with` blocks before close"):
            pool.close()


@pytest.mark.parametrize("arguments", [(), (None,), (None, None, None, None)])
def test_an_exit_takes_three_arguments(pool: MemoryPool, arguments: tuple[None, ...]) -> None:
    for scope in (pool, pool.outside()):
        with scope:
            text = rf"__exit__\(\) takes 3 arguments .*, got {len(arguments)}"
            with pytest.raises(ArgumentTypeError, match=text):
                scope.__exit__(*arguments)  # type: ignore[arg-type]


def test_an_exit_without_a_scope_is_an_error(pool: MemoryPool) -> None:
    with pytest.raises(ScopeError, match="no scope is open"):
        pool.__exit__(None, None, None)


def test_a_forgotten_scope_ends_with_its_pool() -> None:
    MemoryPool("64MiB", device="cpu").__enter__()
    gc.collect()
    assert is_native(torch.empty(1000))


def test_activate_opens_one_scope_until_deactivate(pool: MemoryPool) -> None:
    pool.activate()
    pool.activate()
    inside = torch.ones(8)
    pool.deactivate()
    outside = torch.ones(8)
    pool.deactivate()
    assert is_in(pool, inside)
    assert not is_in(pool, outside)


def test_a_closed_pool_cannot_be_activated() -> None:
    pool = MemoryPool("8MiB", device="cpu")
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.activate()
    pool.deactivate()


@pytest.mark.parametrize("opens", [False, True])
def test_whatever_interrupts_activate_the_pool_knows_whether_it_is_active(
    pool: MemoryPool, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    enter = MemoryPool.__enter__

    def interrupted(self: MemoryPool) -> None:
        if opens:
            enter(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryPool, "__enter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.activate()
    monkeypatch.undo()
    assert is_in(pool, torch.ones(8)) == opens
    pool.activate()
    assert is_in(pool, torch.ones(8))
    pool.deactivate()
    assert is_native(torch.ones(8))


def test_a_with_block_inside_an_active_pool_leaves_it_active(pool: MemoryPool) -> None:
    pool.activate()
    with pool:
        pass
    assert is_in(pool, torch.ones(8))
    pool.deactivate()
    assert not is_in(pool, torch.ones(8))
