"""Blocks that are left in another thread or task than entered them, or never left."""

import asyncio
import gc
import threading
from contextlib import AsyncExitStack

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from django_dblock import FencedLock, LockLost, LockTimeout, SelfDeadlock, fenced_lock
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.lock import _blocks
from tests.fencing.helpers import NAME, beat_now, in_a_thread, is_expired, run, until_renewed
from tests.helpers import observe

pytestmark = pytest.mark.django_db(transaction=True)


class TestLeftElsewhere:
    def test_block_entered_in_another_task_is_released(self, observer):
        """As Python 3.11's wait_for() does."""

        async def main():
            async with AsyncExitStack() as stack:
                entering = stack.enter_async_context(fenced_lock(NAME, ttl=1.5))
                lock = await asyncio.create_task(entering)
                lock.check()
            return lock

        lock = run(main())
        assert is_expired(observer)
        assert lock.trust not in heartbeat.of("default")._due
        assert not lock.lost

    def test_generator_closed_in_another_thread_releases(self, observer):
        def rows():
            with fenced_lock(NAME, ttl=30):
                yield

        generator = rows()
        next(generator)
        assert in_a_thread(generator.close) is None
        assert is_expired(observer)

    def test_garbage_collected_generator_releases(self, observer):
        def rows():
            with fenced_lock(NAME, ttl=30):
                yield

        kept = [rows()]
        in_a_thread(lambda: next(kept[0]))
        kept.clear()
        gc.collect()
        assert is_expired(observer)

    def test_collection_while_a_block_is_entered_releases(self, observer, monkeypatch):
        """The collected generator leaves its block in the middle of the entry into another."""
        block = fenced_lock("collected", "or", "not", ttl=30)
        before = set(_blocks._open)  # of other tests, which left blocks on purpose

        def rows():
            with block:
                yield

        class Open(dict):
            def get(self, *arguments):
                found = super().get(*arguments)
                gc.collect()
                return found

        gc.disable()
        try:
            generator = rows()
            next(generator)
            cycle = [generator]
            cycle.append(cycle)
            del generator, cycle
            assert not is_expired(observer, "collected:or:not")
            monkeypatch.setattr(_blocks, "_open", Open(_blocks._open))
            with fenced_lock(NAME, ttl=30):
                assert is_expired(observer, "collected:or:not")
        finally:
            gc.enable()
        assert set(_blocks._open) <= before

    def test_exit_in_another_thread_releases(self, observer):
        block = fenced_lock(NAME, ttl=30)
        in_a_thread(block.__enter__)
        block.__exit__(None, None, None)
        assert is_expired(observer)

    def test_ambiguous_exit_in_another_thread_is_refused(self):
        """Two open blocks of one object, both in threads that live."""
        block = fenced_lock(NAME, ttl=30)
        left, entered = threading.Event(), threading.Barrier(3)

        def hold(name):
            FencedLock.objects.filter(name=NAME).update(expires_at="2000-01-01T00:00Z")
            block.__enter__()
            entered.wait()
            left.wait()
            try:
                block.__exit__(None, None, None)
            except LockLost:
                pass
            finally:
                connections.close_all()

        threads = []
        for name in ("first", "second"):
            threads.append(threading.Thread(target=hold, args=[name]))
            threads[-1].start()
            observe.until(lambda: entered.n_waiting == len(threads), f"the {name} has entered")
        entered.wait()
        with pytest.raises(RuntimeError, match="2 blocks of the same object are open"):
            block.__exit__(None, None, None)
        left.set()
        for thread in threads:
            thread.join()

    def test_exit_in_an_event_loop_ends_the_renewals(self):
        """Django refuses a statement there, so nothing is released."""
        block = fenced_lock(NAME, ttl=60)
        lock = block.__enter__()

        async def leave():
            block.__exit__(None, None, None)

        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(leave())
        assert lock.trust not in heartbeat.of("default")._due
        assert lock.release(), "it was held until now"

    def test_exit_without_enter_is_refused(self):
        with pytest.raises(RuntimeError, match=r"not entered.*0 blocks"):
            fenced_lock(NAME, ttl=30).__exit__(None, None, None)


class TestLeftBehind:
    def test_lease_of_an_ended_thread_is_not_renewed(self, observer):
        told = []
        block = fenced_lock(NAME, ttl=1.5, on_lost=told.append)
        lock = in_a_thread(block.__enter__)
        beat_now()
        observe.until(lambda: told == [lock], "it is told at the next beat")
        assert "the thread that entered the block has ended" in lock.trust.reason
        with pytest.raises(LockLost, match="has ended without leaving it"):
            lock.check()
        observe.until(lambda: is_expired(observer), "it expires")

    def test_lease_of_an_ended_event_loop_is_not_renewed(self, observer):
        block = fenced_lock(NAME, ttl=60)

        async def main():
            return await block.__aenter__()

        lock = run(main())
        beat_now()
        observe.until(lambda: lock.lost, "it is told at the next beat")
        assert "the event loop that entered the block has ended" in lock.trust.reason

    def test_negative_twin_running_task_is_renewed(self, observer):
        async def main():
            async with fenced_lock(NAME, ttl=3) as lock:
                await asyncio.to_thread(until_renewed, observer)
                beat_now()
                lock.check()

        run(main())


class TestNotReentrant:
    def test_self_deadlock_is_refused_at_once(self):
        with fenced_lock(NAME, ttl=30):
            with pytest.raises(SelfDeadlock, match="not re-entrant"):
                fenced_lock(NAME, ttl=30, timeout=None).__enter__()
            with pytest.raises(LockTimeout, match="locked by yourself, in a block further out"):
                fenced_lock(NAME, ttl=30).__enter__()

    def test_recursive_decorated_function_is_refused(self):
        @fenced_lock(NAME, ttl=30, timeout=None)
        def recurse(depth):
            if depth:
                recurse(depth - 1)

        recurse(0)
        with pytest.raises(SelfDeadlock):
            recurse(1)

    def test_self_deadlock_in_a_task_is_refused(self):
        async def main():
            async with fenced_lock(NAME, ttl=30):
                with pytest.raises(SelfDeadlock, match="not re-entrant"):
                    await fenced_lock(NAME, ttl=30, timeout=None).__aenter__()

        run(main())

    def test_released_lease_under_hold_at_least_is_awaited(self):
        """The caller has released it: only what is left of hold_at_least keeps it."""
        with fenced_lock(NAME, ttl=30, hold_at_least=0.5) as first:
            first.release()
            with fenced_lock(NAME, ttl=30, timeout=None) as second:
                assert second.token > first.token

    def test_another_thread_may_wait(self):
        """Also one that was started inside the block, with its context."""
        import contextvars

        with fenced_lock(NAME, ttl=30):
            inside = contextvars.copy_context()
            failure = in_a_thread(
                lambda: inside.run(fenced_lock(NAME, ttl=30, timeout=0.05).__enter__)
            )
        assert isinstance(failure, LockTimeout)
        assert "yourself" not in str(failure)
