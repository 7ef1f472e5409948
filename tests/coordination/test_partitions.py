"""partitions: each worker owns its share, and what a dead one owned is owned again."""

import asyncio
import time
from datetime import date
from decimal import Decimal
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, OperationalError, connection, transaction

from django_dblock import (
    FencedLock,
    LockLost,
    OpenTransaction,
    StandbyDatabase,
    fenced_semaphore,
    partition_of,
    partitions,
    signals,
)
from django_dblock.coordination import slots
from django_dblock.fencing import store
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.store import Refusal
from tests.app.models import Counter
from tests.coordination.rows import expire, held
from tests.fencing.helpers import in_a_thread
from tests.helpers import observe
from tests.helpers.cancelling import cancel
from tests.helpers.processes import process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

PARTS, WORKERS = "outbox~partition", "outbox~worker"


def outbox(count=4, **more):
    return partitions("outbox", **{"count": count, "ttl": 30, **more})


class TestPartitionOf:
    """Golden vectors: two releases must agree for ever."""

    @pytest.mark.parametrize(
        ("key", "at_64", "at_1000"),
        [
            ("order-1", 35, 515),
            (7, 40, 104),
            (("order", 7), 28, 404),
            (UUID(int=1), 13, 589),
            (Decimal("1.50"), 22, 582),
            (date(2026, 1, 1), 25, 81),
            ("größe", 34, 178),
            (b"\x00", 23, 223),
        ],
    )
    def test_partition_of_a_key_is_fixed(self, key, at_64, at_1000):
        assert (partition_of(key, 64), partition_of(key, 1000)) == (at_64, at_1000)

    def test_equal_keys_are_in_one_partition(self):
        assert partition_of(Decimal("1.50"), 64) == partition_of(Decimal("1.5"), 64)
        assert partition_of("a", 64) == partition_of(("a",), 64)

    def test_namespace_does_not_change_the_partition(self, settings):
        before = partition_of("order-1", 10_000)
        settings.DBLOCK_NAMESPACE = "acme"
        assert partition_of("order-1", 10_000) == before

    def test_keys_are_spread_over_the_partitions(self):
        found = [partition_of(number, 16) for number in range(16_000)]
        assert all(900 < found.count(number) < 1100 for number in range(16))

    @pytest.mark.parametrize(
        ("count", "error"),
        [(0, ValueError), (10_001, ValueError), (True, TypeError), (1.0, TypeError)],
    )
    def test_wrong_count_is_refused(self, count, error):
        with pytest.raises(error):
            partition_of("a", count)


class TestOneWorker:
    def test_single_worker_owns_all_and_releases_all(self):
        with outbox() as mine:
            assert [part.number for part in mine] == [0, 1, 2, 3]
            assert mine.numbers == (0, 1, 2, 3)
            assert len(mine) == 4
            assert mine.workers == 1
            assert repr(mine) == "<Share outbox 4 of 4>"
            assert held(PARTS) == [0, 1, 2, 3]
            assert held(WORKERS) == [0]
            assert FencedLock.objects.get(name=WORKERS, slot=0).metadata == {"count": 4}
        assert held(PARTS) == held(WORKERS) == []

    def test_pass_begins_after_the_last_used_partition(self):
        with outbox() as mine:
            for part in mine:
                if part.number == 1:
                    break
            assert [part.number for part in mine] == [2, 3, 0, 1]

    def test_lost_partition_writes_nothing_under_guard(self, observer):
        with outbox() as mine:
            for part in mine:
                with part, part.guard():
                    if part.number == 2:
                        expire(observer, PARTS, slot=3)
                    Counter.objects.create(name=str(part.number))
            assert mine.numbers == (0, 1, 2)
        assert set(Counter.objects.values_list("name", flat=True)) == {"0", "1", "2"}

    def test_loss_outside_the_partitions_block_propagates(self, observer):
        with pytest.raises(LockLost), outbox() as mine:
            expire(observer, PARTS)
            for part in mine:
                with part.guard():
                    pass
        assert held(PARTS) == []

    def test_lost_partition_is_taken_again(self, observer):
        with outbox() as mine:
            mine._owned[1].trust.lose("lost for the test")
            expire(observer, PARTS, slot=1)
            mine.balance()
            assert mine.numbers == (0, 1, 2, 3)

    def test_partition_expired_unnoticed_is_taken_again(self, observer):
        """The old lease is lost, and is not renewed any more."""
        with outbox() as mine:
            old = mine._owned[0]
            mine._owned[3].trust.lose("lost for the test")
            expire(observer, PARTS, slot=0)
            expire(observer, PARTS, slot=3)
            mine.balance()
            assert mine._owned[0].token > old.token
            assert old.lost
            assert old.trust not in heartbeat.of("default")._due
            mine.balance()
            assert mine.numbers == (0, 1, 2, 3)

    def test_worker_that_lost_its_registration_registers_again(self, observer):
        with outbox() as mine:
            tokens = [part.token for part in mine]
            expire(observer, WORKERS)
            mine.balance()  # not noticed yet: it owns nothing from now on
            assert len(mine) == 0
            mine._worker.trust.lose("lost for the test")
            mine.balance()
            assert [part.token for part in mine] > tokens

    def test_partition_in_use_outlasts_the_registration(self, observer):
        """Another thread uses it: a worker gives up partitions only between two uses."""
        with outbox() as mine:
            used = next(passing := iter(mine))
            expire(observer, WORKERS)
            mine._worker.trust.lose("lost for the test")
            mine.balance()
            used.check()
            assert mine.numbers == (0, 1, 2, 3)
            passing.close()

    def test_join_is_five_statements_and_a_pass_none(self, statements):
        with outbox():
            pass
        with statements() as sent:
            with outbox():
                pass
        assert len(sent) == 5  # register; look for other counts; look; take; release
        with outbox() as mine, statements() as sent:
            mine.balance()
            assert list(mine)
            assert list(mine)
        assert len(sent) == 1  # looking at what is owned sends nothing

    def test_partitions_are_independent_of_a_semaphore(self):
        with fenced_semaphore("outbox", permits=1, ttl=30), outbox(1) as mine:
            assert len(mine) == 1

    def test_signals_report_worker_and_partitions(self):
        heard = []

        def hear(signal, sender, **data):
            heard.append((signal, sender.__name__, data["kind"], data["name"]))

        for signal in (signals.lock_acquired, signals.lock_released):
            signal.connect(hear)
        try:
            with outbox(1):
                pass
        finally:
            for signal in (signals.lock_acquired, signals.lock_released):
                signal.disconnect(hear)
        assert [(one[0], one[2]) for one in heard] == [
            (signals.lock_acquired, "worker"),
            (signals.lock_acquired, "partition"),
            (signals.lock_released, "partition"),
            (signals.lock_released, "worker"),
        ]

    def test_one_object_entered_twice_is_two_workers(self):
        block = outbox(2)
        with block as one, block as two:
            one.balance()
            two.balance()
            assert one.numbers == (0,)
            assert two.numbers == (1,)

    def test_blocks_left_in_another_order_are_released(self):
        one, two = outbox(2), partitions("other", count=1, ttl=30)
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        assert held(PARTS) == []
        two.__exit__(None, None, None)

    def test_worker_stays_in_the_schema_of_its_entry(self, observer):
        """The body may change the search path, as a loop over tenants does."""
        with outbox() as mine, connection.cursor() as cursor:
            cursor.execute("SET search_path TO pg_temp")
            try:
                mine.balance()
                assert mine.numbers == (0, 1, 2, 3)
                expire(observer, WORKERS)
                mine._worker.trust.lose("lost for the test")
                mine.balance()
                assert mine.numbers == (0, 1, 2, 3)
            finally:
                cursor.execute("RESET search_path")

    def test_share_of_a_left_block_takes_nothing(self):
        """Nobody would release it any more, and the heartbeat would renew it."""
        with outbox() as mine:
            pass
        mine._due = 0
        with pytest.raises(RuntimeError, match="was left"):
            list(mine)
        assert held(PARTS) == held(WORKERS) == []

    def test_exit_without_enter_is_refused(self):
        with pytest.raises(RuntimeError, match="0 blocks"):
            outbox().__exit__(None, None, None)

    def test_exit_in_another_thread_releases(self):
        """Else its leases would be renewed for as long as this process lives."""
        block = outbox()
        in_a_thread(block.__enter__)
        assert held(PARTS) == [0, 1, 2, 3]
        block.__exit__(None, None, None)
        assert held(PARTS) == held(WORKERS) == []

    def test_generator_closed_in_another_thread_releases(self):
        def work():
            with outbox() as mine:
                yield mine

        generator = work()
        next(generator)
        assert in_a_thread(generator.close) is None
        assert held(PARTS) == held(WORKERS) == []

    def test_partitions_of_an_ended_thread_expire(self):
        """Nobody handles the partitions, so they must go to another worker."""
        mine = in_a_thread(outbox(ttl=3).__enter__)
        assert len(mine) == 4
        observe.until(lambda: len(mine) == 0, "it is told at the next beat")
        observe.until(lambda: held(PARTS) == held(WORKERS) == [], "they expire")


class TestTwoWorkers:
    """Both in one process, each balanced when the test says so."""

    def test_newcomer_gets_its_share_and_gives_it_back(self):
        with outbox(5) as one:
            with outbox(5) as two:
                assert (len(one), len(two)) == (5, 0)
                one.balance()
                two.balance()
                assert (one.numbers, two.numbers) == ((0, 1, 2), (3, 4))
                assert two.workers == 2
            one.balance()
            assert len(one) == 5

    def test_worker_without_a_partition_gets_an_empty_pass(self):
        with outbox(1) as one, outbox(1) as two:
            one.balance()
            two.balance()
            assert (len(one), len(two)) == (1, 0)
            assert list(two) == []

    def test_partition_in_use_is_not_given_up(self):
        with outbox(2) as one, outbox(2) as two:
            for part in one:
                if part.number == 1:
                    one.balance()
                    assert one.numbers == (1,)
                    two.balance()
                    assert two.numbers == (0,)
                    break

    def test_partition_is_given_up_between_two_uses(self):
        with outbox(2) as one, outbox(2):
            used = []
            for part in one:
                used.append(part.number)
                one._due = 0
            assert used == [0]
            assert one.numbers == (0,)

    def test_partitions_of_a_frozen_worker_go_to_the_others(self, observer):
        with outbox(4) as frozen, outbox(4) as other:
            frozen.balance()
            other.balance()
            expire(observer, WORKERS, slot=0)
            expire(observer, PARTS, slot=0)
            expire(observer, PARTS, slot=1)
            other.balance()
            assert other.numbers == (0, 1, 2, 3)
            with pytest.raises(LockLost):
                for part in frozen:
                    with part.guard():
                        pytest.fail("two owners")

    def test_different_count_is_refused(self):
        with outbox(4), pytest.raises(ValueError, match="into 4 partitions, this one into 8"):
            outbox(8).__enter__()
        assert held(WORKERS) == []

    def test_worker_that_was_frozen_is_refused_beside_another_count(self, observer, monkeypatch):
        """Else both counts would go on, and the same rows would be in two partitions."""

        def fail():
            raise OperationalError("gone")

        with outbox(4) as frozen:
            expire(observer, WORKERS)
            expire(observer, PARTS)
            with outbox(8) as mine:
                frozen._worker.trust.lose("lost for the test")
                frozen._due = 0
                monkeypatch.setattr(frozen, "_live", fail)  # the look after it has registered
                with pytest.raises(OperationalError):
                    list(frozen)
                monkeypatch.undo()
                with pytest.raises(ValueError, match="into 8 partitions, this one into 4"):
                    list(frozen)
                assert frozen.numbers == ()
                assert mine.numbers
                assert held(WORKERS) == [0]


class TestWaiting:
    def test_pass_of_a_worker_owning_nothing_pauses(self, monkeypatch):
        slept = []
        monkeypatch.setattr(time, "sleep", slept.append)
        with outbox(1), outbox(1) as two:
            assert list(two) == []
        assert 0 < slept[0] <= 0.5

    def test_pass_of_a_worker_that_lost_all_pauses(self, monkeypatch):
        """Else a worker's loop would spin until the next balance."""
        slept = []
        monkeypatch.setattr(time, "sleep", slept.append)
        with outbox(1) as mine:
            mine._owned[0].trust.lose("lost for the test")
            assert list(mine) == []
        assert 0 < slept[0] <= 0.5

    def test_balance_takes_nothing_while_all_slots_are_locked(self, monkeypatch):
        with outbox(1) as mine:
            mine._give_up(1)
            monkeypatch.setattr(slots, "acquire_slots", lambda *_, **__: None)
            mine.balance()
            assert len(mine) == 0
            monkeypatch.undo()

    def test_too_many_workers_are_refused(self, monkeypatch):
        monkeypatch.setattr(slots, "acquire_slots", lambda *_, **__: Refusal(1, 1, "somebody"))
        with pytest.raises(RuntimeError, match="10000 workers"):
            outbox().__enter__()


class TestErrors:
    def test_open_transaction_is_refused(self):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            outbox().__enter__()

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"count": 0}, ValueError),
            ({"ttl": 0}, ValueError),
            ({"metadata": []}, TypeError),
            ({"metadata": {"a": object()}}, TypeError),
            ({"metadata": {"a": float("nan")}}, ValueError),
            ({"metadata": {"a": "\0"}}, ValueError),
        ],
    )
    def test_wrong_arguments_are_refused_before_sql(self, arguments, error, statements):
        with statements() as sent, pytest.raises(error):
            outbox(**arguments)
        assert len(sent) == 0

    def test_failure_while_it_takes_leaves_nothing_held(self, monkeypatch):
        """Such as a signal handler's exception: the other partitions would wait for the ttl."""
        watch, watched = heartbeat.watch, []

        def fail(trust, **more):
            watched.append(trust)
            if len(watched) == 3:  # the worker, the first partition, the second
                raise SystemExit
            watch(trust, **more)

        monkeypatch.setattr(heartbeat, "watch", fail)
        with pytest.raises(SystemExit):
            outbox().__enter__()
        assert held(PARTS) == held(WORKERS) == []

    def test_failed_release_raises_or_is_logged(self, monkeypatch, caplog):
        def fail(*_, **__):
            raise OperationalError("gone")

        with pytest.raises(DatabaseError), outbox(1):
            monkeypatch.setattr(store, "run_again", fail)
        with pytest.raises(ZeroDivisionError), outbox(1):
            raise ZeroDivisionError
        assert "was not released, it expires" in caplog.text

    def test_a_refusal_of_a_standby_hides_no_error(self, monkeypatch, caplog):
        def refuse(*_, **__):
            raise StandbyDatabase(keys=(("a",),), name="a", using="default")

        with pytest.raises(ZeroDivisionError), outbox(1):
            monkeypatch.setattr(store, "run_again", refuse)
            raise ZeroDivisionError
        assert "was not released, it expires" in caplog.text


class TestAsync:
    def test_async_pass_visits_each_partition(self):
        async def work():
            async with outbox(3) as mine:
                first = [part.number async for part in mine]
                mine._due = 0
                return first, [part.number async for part in mine]

        assert async_to_sync(work)() == ([0, 1, 2], [0, 1, 2])
        assert held(PARTS) == []

    def test_async_pass_of_a_worker_owning_nothing_is_empty(self):
        async def work():
            async with outbox(1), outbox(1) as two:
                two._give_up(1)
                return [part async for part in two]

        assert async_to_sync(work)() == []

    def test_async_pass_of_a_worker_that_lost_all_pauses(self, monkeypatch):
        slept = []

        async def sleep(seconds):
            slept.append(seconds)

        async def work():
            async with outbox(1) as mine:
                mine._owned[0].trust.lose("lost for the test")
                monkeypatch.setattr(asyncio, "sleep", sleep)
                found = [part async for part in mine]
                monkeypatch.undo()
                return found

        assert async_to_sync(work)() == []
        assert 0 < slept[0] <= 0.5

    def test_async_pass_skips_a_lost_partition(self):
        async def work():
            async with outbox(2) as mine:
                mine._owned[0].trust.lose("lost for the test")
                return [part.number async for part in mine]

        assert async_to_sync(work)() == [1]

    @pytest.mark.parametrize("when", ["joining", "balancing", "leaving"])
    def test_cancelled_worker_releases_everything(self, when, monkeypatch):
        async def work():
            task, loop = asyncio.current_task(), asyncio.get_running_loop()

            def cancelling(function):
                def call(*arguments, **more):
                    cancel(task, loop)
                    return function(*arguments, **more)

                return call

            if when == "joining":
                monkeypatch.setattr(slots, "acquire_slots", cancelling(slots.acquire_slots))
            async with outbox(1) as mine:
                if when == "balancing":
                    mine._due = 0
                    monkeypatch.setattr(store, "run", cancelling(store.run))
                    async for _part in mine:
                        pytest.fail("cancelled before")
                monkeypatch.setattr(store, "run_again", cancelling(store.run_again))

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(work)()
        assert held(PARTS) == held(WORKERS) == []


def work(channel, count, ttl):
    """Handle partitions until told to stop; write down who was where, under guard."""
    with outbox(count, ttl=ttl) as mine:
        channel.send("joined")
        while not channel._pipe.poll():
            for part in mine:
                with part, part.guard():
                    name = f"{part.number} {time.monotonic_ns()}"
                    Counter.objects.create(name=name, value=part.token % 1_000_000_000)


@pytest.mark.processes
def test_partitions_of_a_dead_worker_are_owned_again(observer):
    with process(work, 6, 2) as one, process(work, 6, 2) as two:
        one.receive()
        two.receive()
        observe.until(lambda: shares(observer) == [3, 3], "each has its share")
        one.kill()
        observe.until(lambda: shares(observer) == [6], "all are owned by the other")
        observe.until(lambda: handled(observer) == 6, "the other handles all of them")
        two.send("stop")
        two.receive()
    for number in range(6):
        rows = Counter.objects.filter(name__startswith=f"{number} ").order_by("pk")
        tokens = list(rows.values_list("value", flat=True))
        assert tokens == sorted(tokens)  # those of a partition never go back


def shares(observer):
    """How many live partitions each process holds."""
    rows = observer.execute(
        "SELECT count(*) FROM django_dblock_fencedlock"
        " WHERE name = %s AND expires_at > clock_timestamp() GROUP BY owner ORDER BY owner",
        [PARTS],
    ).fetchall()
    return [count for (count,) in rows]


def handled(observer):
    """How many partitions were handled under their latest token."""
    return observer.execute(
        "SELECT count(*) FROM django_dblock_fencedlock AS part WHERE name = %s AND EXISTS ("
        " SELECT FROM app_counter WHERE name LIKE part.slot || ' %%'"
        " AND value = part.token %% 1000000000)",
        [PARTS],
    ).fetchone()[0]
