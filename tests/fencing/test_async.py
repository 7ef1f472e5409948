"""``async with`` and async functions."""

import asyncio

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError, connections

from django_dblock import FencedLock, LockLost, LockTimeout, OpenTransaction, fenced_lock
from django_dblock.fencing import acquire as waiting
from django_dblock.fencing import store
from django_dblock.fencing.async_lock import Stop
from django_dblock.fencing.heartbeat import heartbeat
from tests.fencing.helpers import NAME, beat_now, is_expired, run
from tests.helpers import observe
from tests.helpers.cancelling import cancel

pytestmark = pytest.mark.django_db(transaction=True)


def test_async_block_holds_the_lease(observer):
    async def work():
        async with fenced_lock(NAME, ttl=30) as lock:
            lock.check()
            await lock.arenew()
            assert not is_expired(observer)
            with pytest.raises(LockTimeout):
                async with fenced_lock(NAME, ttl=30):
                    pass
        assert not lock.lost

    run(work())
    assert is_expired(observer)


def test_async_function_runs_under_the_lease():
    @fenced_lock("inventory", lambda sku: sku, ttl=30)
    async def work(sku):
        return await FencedLock.objects.acount()

    assert run(work("a")) == 1


def test_arelease_in_the_block_frees_the_lease(observer):
    async def work():
        async with fenced_lock(NAME, ttl=30) as lock:
            assert await lock.arelease() is True
            assert is_expired(observer)

    run(work())


def test_tasks_of_one_loop_exclude_each_other():
    inside = []

    async def work(number):
        async with fenced_lock(NAME, ttl=30, timeout=30):
            inside.append(number)
            await asyncio.sleep(0)
            assert inside == [number]
            inside.remove(number)

    async def all_of_them():
        await asyncio.gather(*map(work, range(5)))

    run(all_of_them())


def test_loss_cancels_the_block_and_raises_lock_lost():
    async def work():
        async with fenced_lock(NAME, ttl=60) as lock:
            await FencedLock.objects.aupdate(token=lock.token + 1)
            beat_now()
            await asyncio.sleep(60)

    with pytest.raises(LockLost, match="another holder was granted the lease"):
        run(work())


def test_block_cancelled_by_the_loss_leaves_the_lock_delay():
    """What the block has sent elsewhere goes on."""

    async def work():
        async with fenced_lock(NAME, ttl=0.2, heartbeat=False, lock_delay=60):
            await asyncio.sleep(60)

    with pytest.raises(LockLost):
        run(work())
    with pytest.raises(LockTimeout):
        fenced_lock(NAME, ttl=30).__enter__()


def test_loss_noticed_on_leaving_is_raised():
    async def work():
        async with fenced_lock(NAME, ttl=30) as lock:
            await FencedLock.objects.aupdate(token=lock.token + 1)

    with pytest.raises(LockLost):
        run(work())


def test_loss_without_a_heartbeat_leaves_the_task_usable():
    """As with asyncio.timeout(): the cancellation was ours, so it ends at the block."""

    async def work():
        with pytest.raises(LockLost, match="no renewal was confirmed"):
            async with fenced_lock(NAME, ttl=0.2, heartbeat=False):
                await asyncio.sleep(60)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        return "went on"

    assert run(work()) == "went on"


def test_error_of_the_block_takes_precedence_over_loss():
    async def work():
        async with fenced_lock(NAME, ttl=30) as lock:
            await FencedLock.objects.aupdate(token=lock.token + 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work())


def test_foreign_cancellation_propagates(observer):
    async def hold(started):
        async with fenced_lock(NAME, ttl=30):
            started.set()
            await asyncio.sleep(60)

    async def work():
        started = asyncio.Event()
        task = asyncio.create_task(hold(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert is_expired(observer), "and the lease was given back"


async def cancelled_entry(began, **options):
    """Enter a block, and cancel the entry once ``began`` says that the patched step has begun."""

    async def enter():
        async with fenced_lock(NAME, ttl=30, **options):
            pytest.fail("it was cancelled")

    task = asyncio.create_task(enter())
    while not began:  # noqa: ASYNC110 - it is a thread that begins
        await asyncio.sleep(0.001)  # between two looks, not instead of one
    task.cancel()
    began.append(True)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("works", [True, False])
def test_cancelled_wait_releases_a_late_grant(works, observer, monkeypatch):
    """The statement in its thread can't be called back."""

    def fail(*_, **__):
        raise OperationalError("the server is gone")

    if not works:
        monkeypatch.setattr(store, "release", fail)
    plain = waiting.Attempt.once
    began = []

    def once(attempt):
        began.append(True)
        observe.until(lambda: len(began) > 1, "the task is cancelled")
        return plain(attempt)

    monkeypatch.setattr(waiting.Attempt, "once", once)

    run(cancelled_entry(began))
    assert is_expired(observer) is works, "else it expires by itself"


def test_grant_at_the_end_of_the_loop_is_released(observer, monkeypatch):
    """asyncio.run() cancels every task that is left, and what these wait for, too."""
    plain = waiting.Attempt.once
    began = []

    def once(attempt):
        began.append(True)
        observe.until(began[0].cancelling, "the loop cancels its tasks")
        return plain(attempt)

    monkeypatch.setattr(waiting.Attempt, "once", once)

    async def enter():
        async with fenced_lock(NAME, ttl=30):
            pytest.fail("it was cancelled")

    async def main():
        began.append(asyncio.create_task(enter()))
        while len(began) == 1:  # noqa: ASYNC110 - it is a thread that begins
            await asyncio.sleep(0.001)  # between two looks, not instead of one

    asyncio.run(main())
    asyncio.run(sync_to_async(connections.close_all)())  # of the thread
    assert began[0].cancelled()
    assert is_expired(observer)
    assert not heartbeat.of("default")._due


def test_cancellation_during_a_refused_attempt_propagates(monkeypatch):
    began = []

    def once(_):
        began.append(True)
        observe.until(lambda: len(began) > 1, "the task is cancelled")

    monkeypatch.setattr(waiting.Attempt, "once", once)

    run(cancelled_entry(began, timeout=30))
    assert len(began) == 2, "no further attempt"


def test_cancellation_just_after_the_grant_propagates(observer, monkeypatch):
    """While the attempt ends, the lease is had already."""
    plain = waiting.Attempt.close
    began = []

    def close(attempt):
        began.append(True)
        observe.until(lambda: len(began) > 1, "the task is cancelled")
        plain(attempt)

    monkeypatch.setattr(waiting.Attempt, "close", close)

    run(cancelled_entry(began))
    assert is_expired(observer)


def test_loss_before_the_block_begins_cancels_it(monkeypatch):
    """However long it takes to come from the grant to the block."""
    plain = waiting.Attempt.close

    def close(attempt):
        observe.until(lambda: heartbeat.of("default")._thread is None, "the loss is told")
        plain(attempt)

    monkeypatch.setattr(waiting.Attempt, "close", close)

    async def work():
        async with fenced_lock(NAME, ttl=0.2, heartbeat=False):
            await asyncio.sleep(600)

    with pytest.raises(LockLost):
        run(work())


def test_cancelled_wait_deletes_its_ticket(rival):
    async def enter():
        async with fenced_lock(NAME, ttl=30, timeout=60, fair=True):
            pytest.fail("it was cancelled")

    async def work():
        async with fenced_lock(NAME, ttl=30):
            task = asyncio.create_task(enter())
            while not tickets(rival):  # noqa: ASYNC110 - it is the server that is looked at
                await asyncio.sleep(0.001)  # between two looks, not instead of one
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert tickets(rival) == []

    run(work())


def tickets(rival):
    return rival.execute("SELECT id FROM django_dblock_fencedticket").fetchall()


def test_stop_on_loss_stops_a_lost_lease_at_once():
    async def work():
        async with fenced_lock(NAME, ttl=30) as lock:
            lock.trust.lose("as the test wants it")
            stopped = []
            of_the_block = lock.stop
            lock.stop_on_loss(lambda: stopped.append(True))
            assert stopped == [True]
            lock.stop = of_the_block

    with pytest.raises(LockLost):
        run(work())


def test_cancellation_during_release_still_releases(observer, monkeypatch):
    """The release is sent all the same, and the cancellation stays one."""
    from django_dblock.fencing.lease import Lease

    plain = Lease.leave
    began = []

    def leave(lease, *, failed):
        began.append(True)
        observe.until(lambda: len(began) > 1, "the task is cancelled")
        plain(lease, failed=failed)

    monkeypatch.setattr(Lease, "leave", leave)

    async def hold():
        async with fenced_lock(NAME, ttl=30):
            pass

    async def work():
        task = asyncio.create_task(hold())
        while not began:  # noqa: ASYNC110 - it is a thread that begins
            await asyncio.sleep(0.001)  # between two looks, not instead of one
        task.cancel()
        began.append(True)
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert is_expired(observer)


def test_cancellation_beside_a_timeout_stays_one(monkeypatch):
    """A worker that catches LockTimeout and tries again would never end."""
    original = store.acquire

    async def enter():
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def acquire(*arguments):
            answer = original(*arguments)
            cancel(task, loop)
            return answer

        monkeypatch.setattr(store, "acquire", acquire)
        try:
            async with fenced_lock(NAME, ttl=30):
                pytest.fail("another task holds it")
        except LockTimeout:
            pytest.fail("the cancellation was swallowed")

    async def work():
        async with fenced_lock(NAME, ttl=30):
            with pytest.raises(asyncio.CancelledError) as caught:
                await asyncio.create_task(enter())
        assert isinstance(caught.value.__cause__, LockTimeout)

    run(work())


@pytest.mark.parametrize("was_lost", [False, True])
def test_cancellation_beside_a_failed_release_stays_one(was_lost, monkeypatch):
    """Unless it comes from the loss: then LockLost is raised, as ever."""

    async def hold():
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def release(*_, **__):
            if not was_lost:
                cancel(task, loop)
            raise OperationalError("the server is gone")

        async with fenced_lock(NAME, ttl=30) as lock:
            monkeypatch.setattr(store, "release", release)
            if was_lost:
                lock.trust.lose("as the test wants it")
                lock.stop._fire()  # the loop, on which this task doesn't wait any more

    async def work():
        task = asyncio.create_task(hold())
        await asyncio.wait({task})
        if was_lost:
            assert isinstance(task.exception(), LockLost)
            assert task.cancelling() == 0
        else:
            assert task.cancelled()

    run(work())


def test_stop_after_the_loop_is_closed_does_nothing():
    stops = []

    async def make():
        stops.append(Stop())

    asyncio.run(make())
    stops[0]()


def test_loss_reported_twice_cancels_once():
    """By the one who notices it, and by the task that begins to listen just then."""

    async def work():
        stop = Stop()
        stop()
        stop()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0)
        assert stop.was_the_only_one()
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(work())


def test_loss_in_an_ended_task_is_no_cancellation():
    """A block that was entered in a task of its own: the cancellation of another is not its."""

    async def work():
        async def enter():
            return Stop()

        stop = await asyncio.create_task(enter())
        stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not stop.was_the_only_one()

    asyncio.run(work())


def test_loss_after_the_block_cancels_nothing():
    async def work():
        stop = Stop()
        stop()
        stop.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not stop.was_the_only_one()

    asyncio.run(work())


def test_open_transaction_is_refused():
    from django.db import transaction

    def in_a_transaction():
        with transaction.atomic():
            async_to_sync(enter)()

    async def enter():
        async with fenced_lock(NAME, ttl=30):
            pass

    with pytest.raises(OpenTransaction):
        in_a_transaction()
