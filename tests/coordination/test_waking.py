"""Waiters for permits, read and write leases and latches: who is woken, by what, at what cost."""

import threading
from contextlib import suppress

import pytest
from django.db import DatabaseError, connection, transaction

from django_dblock import LockTimeout, fenced_rwlock, fenced_semaphore, latch
from django_dblock.coordination import rwlock
from django_dblock.core import notify
from django_dblock.fencing import acquire
from django_dblock.fencing.operations import force_release_grant
from tests.coordination.rows import expire, held
from tests.helpers import observe, queueing
from tests.helpers.queueing import (
    in_a_thread,
    notified,
    pause_until_woken,
    until_it_can_be_woken,
    until_queued,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

PERMITS, TURNS = "api~semaphore", "catalogue~rwlock"


@pytest.fixture(autouse=True)
def _no_listener_is_left():
    with queueing.no_listener_is_left():
        yield


@pytest.fixture
def waiting():
    """Make waiters that leave the queue with the test."""
    made = []

    def make(attempt):
        made.append(attempt)
        return attempt

    yield make
    for attempt in made:
        attempt.close()


def semaphore(permits=1, **more):
    return fenced_semaphore("api", permits=permits, ttl=300, timeout=60, **more)


def turns(mode):
    return getattr(fenced_rwlock("catalogue"), mode)(ttl=300, timeout=60)


def imported(parties=3):
    return latch("import", parties=parties)


def hold(block):
    """Take it as somebody else would: no block of this task."""
    lease = block.__enter__()
    rwlock._holding.set(())
    return lease


def queue(waiting, *blocks):
    """Let them queue one after the other; return their topics."""
    return [until_queued(waiting(block._attempt())) for block in blocks]


def listen(rival):
    rival.execute("LISTEN django_dblock")


class TestNobodyWaits:
    @pytest.mark.parametrize(
        "block",
        [
            semaphore,
            lambda: semaphore(2, units=2),
            lambda: turns("read"),
            lambda: turns("write"),
        ],
        ids=["permit", "two units", "read", "write"],
    )
    def test_release_without_waiters_sends_no_notify(self, block, rival, statements):
        with block():
            pass
        listen(rival)
        with statements() as sent:
            for _ in range(3):
                with block():
                    pass
        assert len(sent) == 6
        assert notified(rival) == []

    def test_count_down_without_waiters_sends_no_notify(self, rival, statements):
        listen(rival)
        with statements() as sent:
            for part in range(3):
                imported().count_down(part)
        assert len(sent) == 3
        assert notified(rival) == []

    @pytest.mark.parametrize("block", [semaphore, lambda: turns("write")], ids=["permit", "write"])
    def test_waiter_that_has_not_looked_yet_is_not_notified(self, block, waiting, rival):
        """The mark says whether it is worth looking at the queue; this waiter's look comes next."""
        lease = hold(block())
        one = waiting(block()._attempt())
        while one._ticket is None:
            assert one.once() is None
        listen(rival)
        lease.release()
        assert notified(rival) == []
        assert one.once() is not None


class TestPermits:
    def test_one_permit_wakes_only_the_first_waiter(self, waiting, rival):
        permit = hold(semaphore())
        first, *_ = queue(waiting, semaphore(), semaphore(), semaphore())
        listen(rival)
        permit.release()
        assert notified(rival) == [first]

    def test_two_units_wake_the_first_two_waiters(self, waiting, rival):
        permit = hold(semaphore(2, units=2))
        topics = queue(waiting, semaphore(2), semaphore(2), semaphore(2))
        listen(rival)
        permit.release()
        assert notified(rival) == topics[:2]

    def test_first_waiter_is_woken_only_when_its_units_fit(self, waiting, rival):
        one, two = hold(semaphore(3)), hold(semaphore(3, units=2))
        first, _ = queue(waiting, semaphore(3, units=3), semaphore(3))
        listen(rival)
        one.release()
        assert notified(rival) == []
        two.release()
        assert notified(rival) == [first]

    def test_two_quick_releases_wake_two_waiters(self, waiting, rival):
        permits = [hold(semaphore(2)), hold(semaphore(2))]
        topics = queue(waiting, semaphore(2), semaphore(2), semaphore(2))
        listen(rival)
        for permit in permits:
            permit.release()
        assert notified(rival) == [topics[0], *topics[:2]]

    def test_grant_wakes_the_next_waiter_if_there_is_more(self, waiting, rival, observer):
        """Two releases that don't see each other wake the same waiter."""
        permits = [hold(semaphore(2)), hold(semaphore(2))]
        waiters = [waiting(semaphore(2)._attempt()) for _ in range(3)]
        topics = [until_queued(one) for one in waiters]
        expire(observer, PERMITS)
        listen(rival)
        assert waiters[0].once() is not None
        assert notified(rival) == [topics[1]]
        assert waiters[1].once() is not None
        assert notified(rival) == []
        for permit in permits:
            permit.release()

    def test_grant_wakes_no_next_waiter_that_needs_more(self, waiting, rival, observer):
        permit = hold(semaphore(2, units=2))
        first = waiting(semaphore(2)._attempt())
        until_queued(first)
        queue(waiting, semaphore(2, units=2))
        expire(observer, PERMITS)
        listen(rival)
        assert first.once() is not None
        assert notified(rival) == []
        permit.release()

    def test_leaving_waiter_passes_the_wake_up_on(self, waiting, rival):
        permit = hold(semaphore(2))
        heavy = semaphore(2, units=2)._attempt()
        until_queued(heavy)
        [light] = queue(waiting, semaphore(2, fair=True))
        listen(rival)
        heavy.close()
        assert notified(rival) == [light]
        permit.release()

    def test_waiter_for_two_sleeps_while_one_is_free(self, waiting, statements):
        """Not every permit that is free is for a waiter that needs two."""
        permit = hold(semaphore(2))
        one = waiting(semaphore(2, units=2)._attempt())
        until_it_can_be_woken(one)
        with statements() as sent:
            assert one.once() is None
        assert len(sent) == 1
        assert one.delay > acquire._SIGN / 2
        permit.release()

    def test_briefly_locked_slot_is_tried_again_soon(self, waiting, rival):
        """It is woken, but another waiter is just marking the row that was released."""
        permits = [hold(semaphore(2)), hold(semaphore(2))]
        one = waiting(semaphore(2)._attempt())
        until_it_can_be_woken(one)
        permits[0].release()
        pause_until_woken(one)
        with rival.transaction():
            rival.execute("SELECT FROM django_dblock_fencedlock WHERE slot = 0 FOR UPDATE")
            assert one.once() is None
        assert one.delay <= 3 * acquire._SHORTEST
        assert one.once() is not None
        permits[1].release()


class TestTurns:
    def test_writer_wakes_all_readers_up_to_the_next_writer(self, waiting, rival):
        lease = hold(turns("write"))
        topics = queue(waiting, *map(turns, ["read", "read", "write", "read"]))
        listen(rival)
        lease.release()
        assert sorted(notified(rival)) == sorted(topics[:2])

    def test_writer_wakes_the_writer_that_comes_first(self, waiting, rival):
        lease = hold(turns("write"))
        first, *_ = queue(waiting, *map(turns, ["write", "read", "write"]))
        listen(rival)
        lease.release()
        assert notified(rival) == [first]

    def test_only_the_last_reader_wakes_the_writer(self, waiting, rival):
        leases = [hold(turns("read")), hold(turns("read"))]
        first, *_ = queue(waiting, *map(turns, ["write", "read"]))
        listen(rival)
        leases[0].release()
        assert notified(rival) == []
        leases[1].release()
        assert notified(rival) == [first]

    def test_reader_wakes_readers_behind_a_dead_writer(self, waiting, rival, observer):
        leases = [hold(turns("read")), hold(turns("read"))]
        _, reader = queue(waiting, turns("write"), turns("read"))
        observer.execute(
            "UPDATE django_dblock_fencedticket SET expires_at = clock_timestamp() WHERE slot = 0"
        )
        listen(rival)
        leases[0].release()
        assert notified(rival) == [reader]
        leases[1].release()

    LEAVE = "UPDATE django_dblock_fencedlock SET expires_at = clock_timestamp() WHERE slot = 1"

    def leave_together(self, waiting, rival, observer):
        """Release slot 2 while slot 1 is being released; return who is notified."""
        first, second = hold(turns("read")), hold(turns("read"))
        queue(waiting, turns("write"))
        observer.execute("LISTEN django_dblock")
        with rival.transaction():
            rival.execute(self.LEAVE)
            second.release()
        found = notified(observer)
        first.release()
        return found

    def test_two_readers_leaving_together_wake_the_writer_once(self, waiting, rival, observer):
        assert len(self.leave_together(waiting, rival, observer)) == 1

    def test_negative_twin_without_skip_locked_loses_the_wake_up(
        self, waiting, rival, observer, monkeypatch
    ):
        """The negative twin: each of the two sees the other, and neither wakes the writer."""
        counted = rwlock.sql.RELEASE_TURN.replace("FOR NO KEY UPDATE SKIP LOCKED", "")
        monkeypatch.setattr(rwlock.sql, "RELEASE_TURN", counted)
        assert self.leave_together(waiting, rival, observer) == []

    def test_later_of_two_mutually_waiting_readers_wakes(self, waiting, rival, observer):
        first, second = hold(turns("read")), hold(turns("read"))
        queue(waiting, turns("write"))
        observer.execute("LISTEN django_dblock")
        with rival.transaction():
            looked = "SELECT FROM django_dblock_fencedlock WHERE slot = 2 FOR NO KEY UPDATE"
            rival.execute(self.LEAVE)
            rival.execute(looked)
            releasing = in_a_thread(second.release)
            observe.until(lambda: blocked(observer), "the release waits for its row")
        releasing.join()
        assert len(notified(observer)) == 1
        first.release()

    def test_downgrade_wakes_the_readers_before_the_next_writer(self, waiting, rival):
        lease = hold(turns("write"))
        topics = queue(waiting, *map(turns, ["read", "write", "read"]))
        listen(rival)
        with lease.downgrade():
            assert notified(rival) == topics[:1]

    def test_downgrade_wakes_no_writer(self, waiting, rival):
        lease = hold(turns("write"))
        queue(waiting, turns("write"))
        listen(rival)
        with lease.downgrade():
            assert notified(rival) == []

    def test_writer_that_gives_up_wakes_the_readers_behind(self, waiting, rival):
        lease = hold(turns("read"))
        writer = turns("write")._attempt()
        until_queued(writer)
        topics = queue(waiting, turns("read"), turns("read"))
        listen(rival)
        writer.close()
        assert sorted(notified(rival)) == sorted(topics)
        lease.release()

    def test_force_release_wakes_the_readers_together(self, waiting, rival):
        lease = hold(turns("write"))
        topics = queue(waiting, *map(turns, ["read", "read", "write"]))
        listen(rival)
        assert force_release_grant(TURNS, 0, lease.token)
        assert sorted(notified(rival)) == sorted(topics[:2])
        lease.release()

    def test_reader_behind_a_waiting_writer_sleeps(self, waiting, statements):
        lease = hold(turns("read"))
        queue(waiting, turns("write"))
        one = waiting(turns("read")._attempt())
        until_it_can_be_woken(one)
        with statements() as sent:
            assert one.once() is None
        assert len(sent) == 1
        assert one.delay > acquire._SIGN / 2
        lease.release()


def blocked(observer):
    return observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    ).fetchone()[0]


class TestLatch:
    def wait(self, waiting, parties=2):
        return until_queued(waiting(imported(parties)._attempt(60)))

    def test_only_the_last_part_wakes_all_waiters(self, waiting, rival, statements):
        topics = [self.wait(waiting), self.wait(waiting)]
        listen(rival)
        with statements() as sent:
            imported(2).count_down("a")
        assert len(sent) == 2
        assert notified(rival) == []
        imported(2).count_down("b")
        assert sorted(notified(rival)) == sorted(topics)

    def test_last_part_wakes_at_its_commit(self, waiting, rival):
        topic = self.wait(waiting, 1)
        listen(rival)
        with transaction.atomic():
            imported(1).count_down("a")
            assert notified(rival) == []
        assert notified(rival) == [topic]

    def test_parts_of_one_transaction_wake_once(self, waiting, rival, statements):
        topic = self.wait(waiting, 6)
        listen(rival)
        with statements() as sent, transaction.atomic():
            for part in range(3):
                imported(6).count_down(part)
            for part in range(3, 6):
                with transaction.atomic():
                    imported(6).count_down(part)
            assert len(connection.run_on_commit) == 1
        assert notified(rival) == [topic]
        assert sum("pg_notify" in query["sql"] for query in sent) == 1

    def test_last_part_wakes_after_a_rolled_back_try(self, waiting, rival, statements):
        topic = self.wait(waiting, 2)
        listen(rival)
        with statements() as sent, transaction.atomic():
            with transaction.atomic():
                imported(2).count_down("a")
            with suppress(ZeroDivisionError), transaction.atomic():
                imported(2).count_down("b")
                raise ZeroDivisionError
            with transaction.atomic():
                imported(2).count_down("b")
        assert notified(rival) == [topic]
        assert sum("pg_notify" in query["sql"] for query in sent) == 1

    def test_each_latch_of_one_transaction_wakes_its_waiters(self, waiting, rival):
        topics = [self.wait(waiting, 1)]
        topics.append(until_queued(waiting(latch("export", parties=1)._attempt(60))))
        listen(rival)
        with transaction.atomic():
            imported(1).count_down("a")
            latch("export", parties=1).count_down("a")
        assert sorted(notified(rival)) == sorted(topics)

    def test_rolled_back_part_wakes_nobody(self, waiting, rival):
        self.wait(waiting, 1)
        listen(rival)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            imported(1).count_down("a")
            raise ZeroDivisionError
        assert notified(rival) == []

    def test_last_of_two_concurrent_parts_wakes(self, waiting, rival):
        """Neither statement sees the other's part."""
        topic = self.wait(waiting)
        listen(rival)
        counted, commit = threading.Event(), threading.Event()

        def count():
            with transaction.atomic():
                imported(2).count_down("a")
                counted.set()
                assert commit.wait(60)

        counting = in_a_thread(count)
        assert counted.wait(60)
        imported(2).count_down("b")
        assert notified(rival) == []
        commit.set()
        counting.join()
        assert notified(rival) == [topic]

    def test_part_of_a_manual_transaction_is_found_by_a_look(self, waiting, rival):
        one = waiting(imported(1)._attempt(60))
        until_queued(one)
        listen(rival)
        connection.set_autocommit(False)
        try:
            imported(1).count_down("a")
            connection.commit()
        finally:
            connection.set_autocommit(True)
        assert notified(rival) == []
        assert one.once() is not None

    def test_failed_wake_up_is_logged_and_the_part_counts(self, waiting, caplog):
        one = waiting(imported(1)._attempt(60))
        until_queued(one)

        def refuse(execute, text, *rest):
            if "pg_notify" in text:
                raise DatabaseError("no channel")
            return execute(text, *rest)

        with connection.execute_wrapper(refuse), transaction.atomic():
            assert imported(1).count_down("a")
        assert "no channel" in caplog.text
        assert one.once() is not None

    def test_waiter_goes_on_when_all_named_parts_are_done(self, waiting):
        one = waiting(imported(["a", "b"])._attempt(60))
        until_queued(one)
        imported(["a", "b"]).count_down("a")
        assert one.once() is None
        imported(["a", "b", "c"]).count_down("c")
        assert one.once() is None
        imported(["a", "b"]).count_down("b")
        assert one.once() is not None

    def test_wait_leaves_no_ticket(self, observer):
        with pytest.raises(LockTimeout, match="1 of 1 parts that are missing"):
            imported(1).wait(timeout=0.3)
        waiter = imported(1)._attempt(60)
        until_queued(waiter)
        assert tickets(observer) == 1
        imported(1).count_down("a")
        assert waiter.once() is not None
        assert tickets(observer) == 0
        waiter.close()

    def test_purged_ticket_is_replaced(self, waiting, observer):
        one = waiting(imported(1)._attempt(60))
        until_queued(one)
        observer.execute("TRUNCATE django_dblock_fencedticket")
        assert one.once() is None
        assert tickets(observer) == 1


def tickets(observer):
    return observer.execute("SELECT count(*) FROM django_dblock_fencedticket").fetchone()[0]


def held_permit():
    return hold(semaphore()).release


def held_for(mode):
    return lambda: hold(turns(mode)).release


KINDS = {
    "permit": (held_permit, lambda: semaphore()._attempt()),
    "read": (held_for("write"), lambda: turns("read")._attempt()),
    "write after a writer": (held_for("write"), lambda: turns("write")._attempt()),
    "write after a reader": (held_for("read"), lambda: turns("write")._attempt()),
    "latch": (
        lambda: lambda: imported(1).count_down("a"),
        lambda: imported(1)._attempt(60),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


class TestEachKind:
    def test_waiter_is_woken_and_goes_on(self, kind, waiting):
        take, attempt = kind
        release, one = take(), waiting(attempt())
        until_it_can_be_woken(one)
        releasing = in_a_thread(release)
        pause_until_woken(one)
        releasing.join()
        observe.until(one.once, "it goes on")

    @pytest.mark.parametrize("count", [1, 20])
    def test_idle_waiter_sends_one_statement_in_two_seconds(self, kind, count, waiting, statements):
        take, attempt = kind
        release = take()
        waiters = [waiting(attempt()) for _ in range(count)]
        for one in waiters:
            until_it_can_be_woken(one)
        for signs in (False, True):
            for one in waiters:
                one._shown -= acquire._PATIENCE * signs
            with statements() as sent:
                assert [one.once() for one in waiters] == [None] * count
            assert len(sent) == count
            assert all(one.delay >= 0.9 * acquire._SIGN for one in waiters)
        release()

    def test_waiter_without_a_listener_looks_often(self, kind, waiting, monkeypatch):
        monkeypatch.setattr(notify.Listener, "_listen", lambda *_: None)
        monkeypatch.setattr(notify, "_listeners", {})
        take, attempt = kind
        release, one = take(), waiting(attempt())
        for _ in range(10):
            assert one.once() is None
            assert one.delay <= acquire._LONGEST
            one.delay = 0.0
            one.pause()
        assert not one._subscription.heard
        release()
        observe.until(one.once, "its own look finds it")

    def test_lost_wake_up_is_found_by_the_next_look(self, kind, waiting):
        take, attempt = kind
        release, one = take(), waiting(attempt())
        until_it_can_be_woken(one)
        release()
        one._subscription.close()
        one._subscription = None
        observe.until(one.once, "its own look finds it")


class TestLeaving:
    def test_waiter_whose_connection_died_leaves_no_ticket(self, kind, waiting, observer):
        """Whoever comes next would wait for the ticket's expiry."""
        take, attempt = kind
        release, one = take(), waiting(attempt())
        until_queued(one)
        observer.execute(
            "SELECT pg_terminate_backend(%s, 30000)", [connection.connection.info.backend_pid]
        )
        one.close()
        assert tickets(observer) == 0
        release()


class TestFrozen:
    def test_permit_goes_to_the_next_waiter_that_looks(self, waiting):
        permit = hold(semaphore())
        queue(waiting, semaphore())
        second = waiting(semaphore()._attempt())
        until_queued(second)
        permit.release()
        assert second.once() is not None

    def test_turn_passes_when_the_ticket_of_the_first_expires(self, waiting, observer):
        lease = hold(turns("write"))
        frozen, second = waiting(turns("write")._attempt()), waiting(turns("read")._attempt())
        until_queued(frozen)
        until_queued(second)
        lease.release()
        assert second.once() is None
        observer.execute(
            "UPDATE django_dblock_fencedticket SET expires_at = clock_timestamp() WHERE id = %s",
            [frozen._ticket.id],
        )
        assert second.once() is not None
        assert held(TURNS) == [1]

    @pytest.mark.parametrize(
        "block",
        [semaphore, lambda: turns("read"), lambda: turns("write")],
        ids=["permit", "read", "write"],
    )
    def test_grant_keeps_the_ticket_of_another_name(self, block, waiting, observer):
        """The waiter was frozen during a failover, after which its ticket's id was used again."""
        waiter, stranger = waiting(block()._attempt()), waiting(imported()._attempt(60))
        until_queued(stranger)
        waiter._ticket, waiter._called = stranger._ticket, True
        while (success := waiter.once()) is None:
            waiter._called = True
        assert success.grant.token
        assert tickets(observer) == 1
