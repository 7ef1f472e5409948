"""Waiters are woken by a release, and poll where no notification arrives."""

import threading
import time

import pytest
from django.db import OperationalError, connection

from django_dblock import LockTimeout, fenced_lock, force_release
from django_dblock.core import notify
from django_dblock.core.application_name import named
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import template_of
from django_dblock.fencing import acquire, heartbeat, store
from django_dblock.fencing.acquire import Attempt
from django_dblock.fencing.store import Place, Wish
from django_dblock.sql import fencing as sql
from tests.fencing.helpers import NAME, expire, run, started
from tests.helpers import observe, queueing
from tests.helpers.queueing import notified

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


def attempt(timeout=60, *, in_turn=False):
    return Attempt(Place(named((NAME,)), NAME, "default"), Wish(30, 0, "{}", in_turn), timeout)


def while_the_row_changes(rival, observer, act, change, parameters=()):
    """Run it while another session has changed the row and has yet to commit."""
    [pid] = rival.execute("SELECT pg_backend_pid()").fetchone()
    rival.execute("BEGIN")
    rival.execute(change, parameters)

    def commit():
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        observe.until(
            lambda: observer.execute(blocked, [pid]).fetchone() == (1,), "it waits for the row"
        )
        rival.execute("COMMIT")

    committing = started(commit)
    result = act()
    committing.join()
    return result


@pytest.fixture(autouse=True)
def _no_listener_is_left():
    with queueing.no_listener_is_left():
        yield


class TestRelease:
    def test_uncontended_release_sends_no_notify(self, rival, statements):
        rival.execute("LISTEN django_dblock")
        with statements() as sent:
            for _ in range(3):
                with fenced_lock(NAME, ttl=30):
                    pass
        assert len(sent) == 6
        assert notified(rival) == []

    def test_release_notifies_only_the_first_waiter(self, rival):
        rival.execute("LISTEN django_dblock")
        first, second = attempt(), attempt()
        with fenced_lock(NAME, ttl=30):
            for one in (first, second):
                while one._ticket is None:
                    one.once()
                one.once()
        assert notified(rival) == [first._ticket.topic]
        for one in (first, second):
            one.close()

    def test_release_sends_the_short_statement_if_nobody_waited(self, rival, statements):
        rival.execute("LISTEN django_dblock")
        sent_to_release = []
        for somebody_waits in (False, True, True, False, False):
            one = attempt()
            lock = fenced_lock(NAME, ttl=30).__enter__()
            while somebody_waits and one._ticket is None:
                one.once()
            if somebody_waits:
                one.once()
            with statements() as sent:
                lock.release()
            assert (len(notified(rival)) == 1) is somebody_waits
            one.close()
            sent_to_release.append(["notify" in query["sql"] for query in sent])
        # The mark outlasts the waiters by seconds, so the complete statement is sent again.
        assert sent_to_release == [[False], [False, True], [True], [True], [True]]
        with connection.cursor() as cursor:
            cursor.execute("UPDATE django_dblock_fencedlock SET awaited_until = clock_timestamp()")
        for expected in (True, False):
            lock = fenced_lock(NAME, ttl=30).__enter__()
            with statements() as sent:
                lock.release()
            assert ["notify" in query["sql"] for query in sent] == [expected]

    def test_waiter_that_marks_the_lease_during_the_release_is_woken(self, rival, observer):
        """The short statement has read the row before the mark, and looks again after its lock."""
        rival.execute("LISTEN django_dblock")
        one = attempt()
        lock = fenced_lock(NAME, ttl=30).__enter__()
        while one._ticket is None:
            one.once()
        mark = (
            "UPDATE django_dblock_fencedlock"
            " SET awaited_until = clock_timestamp() + interval '1 minute'"
        )
        while_the_row_changes(rival, observer, lock.release, mark)
        assert notified(rival) == [one._ticket.topic]
        one.close()

    def test_force_release_notifies_the_first_waiter(self, rival):
        rival.execute("LISTEN django_dblock")
        one = attempt()
        lock = fenced_lock(NAME, ttl=30).__enter__()
        while one._ticket is None:
            one.once()
        one.once()
        assert force_release(NAME)
        assert notified(rival) == [one._ticket.topic]
        one.close()
        lock.release()

    def test_leaving_waiter_passes_the_notification_on(self, rival):
        first, second = attempt(), attempt()
        with fenced_lock(NAME, ttl=30):
            for one in (first, second):
                while one._ticket is None:
                    one.once()
                one.once()
        rival.execute("LISTEN django_dblock")
        first.close()
        assert notified(rival) == [second._ticket.topic]
        second.close()

    def test_repeated_ticket_id_belongs_to_its_row(self):
        """After a failover or a restore the sequence repeats ids."""
        one = attempt()
        with fenced_lock(NAME, ttl=30):
            while one._ticket is None:
                one.once()
            stranger = one._ticket._replace(owner="another:1:main")
            assert not store.look(one.place, stranger, 60).queued
            store.drop_ticket(one.place, stranger)
            assert store.look(one.place, one._ticket, None).queued
        one.close()


class TestWaiter:
    def test_waiter_is_woken_and_acquires(self):
        """Without the notification the waiter would sleep for the whole of its delay."""
        lock = fenced_lock(NAME, ttl=30).__enter__()
        one = attempt()
        queueing.until_it_can_be_woken(one)
        assert one.delay > acquire._SIGN / 2
        releasing = started(lock.release)
        queueing.pause_until_woken(one)
        releasing.join()
        assert one.once() is not None
        one.close()
        force_release(NAME)

    def test_idle_waiter_sends_one_statement_in_two_seconds(self, statements):
        lock = fenced_lock(NAME, ttl=300).__enter__()
        one = attempt()
        queueing.until_it_can_be_woken(one)
        with statements() as sent:
            assert one.once() is None
        assert len(sent) <= 1
        assert one.delay >= 0.9 * acquire._SIGN
        one.close()
        lock.release()

    @pytest.mark.parametrize("waits", ["heard", "not heard"])
    def test_waiter_for_an_open_guard_of_an_ended_lease_looks_rarely(
        self, waits, rival, observer, monkeypatch
    ):
        """No release will wake it, and the guard may be open for long."""
        if waits == "not heard":
            monkeypatch.setattr(notify.Listener, "_listen", lambda *_: None)
            monkeypatch.setattr(notify, "_listeners", {})
        lock = fenced_lock(NAME, ttl=300).__enter__()
        one = attempt()
        if waits == "heard":
            queueing.until_it_can_be_woken(one)
        rival.execute("BEGIN")
        rival.execute("SELECT FROM django_dblock_fencedlock FOR KEY SHARE")
        expire(observer)
        slept = []
        for _ in range(40):
            assert one.once() is None
            slept.append(one.delay)
            one.delay = 0.0
            one.pause()
        assert 0.02 < sum(slept) / len(slept) <= acquire._LONGEST
        rival.execute("ROLLBACK")
        assert one.once() is not None
        one.close()
        lock.stop_renewing()

    def test_waiter_without_a_listener_polls(self, monkeypatch):
        monkeypatch.setattr(notify.Listener, "_listen", lambda *_: None)
        monkeypatch.setattr(notify, "_listeners", {})
        lock = fenced_lock(NAME, ttl=300).__enter__()
        one = attempt()
        for _ in range(20):
            assert one.once() is None
            assert one.delay <= acquire._LONGEST
            one.delay = 0.0
            one.pause()
        assert not one._subscription.heard
        one.close()
        lock.release()

    def test_waiters_further_back_poll_rarely(self):
        one = attempt()
        one._ticket = store.Ticket(1, "", "")
        held = store.Refusal(1000, 1, "")
        for ahead, shortest, longest in ((0, 0.01, 0.5), (3, 0.25, 0.5), (100, 1.0, 2.0)):
            one._ahead = ahead
            for _ in range(20):
                one._plan(held, None)
                assert shortest <= one.delay <= longest

    def test_dead_holder_is_found_by_the_first_then_by_the_others(self):
        one = attempt()
        one._ticket = store.Ticket(1, "", "")
        one._subscription = notify.Subscription(notify.Listener("default"), "")
        one._subscription._listener.hears = True
        for ahead in (0, 1, 2):
            one._ahead = ahead
            one._plan(store.Refusal(0.5, 1, ""), None)
            assert one.delay == 0.5 + 0.25 * ahead

    def test_stop_event_ends_the_sleep(self):
        one, stop = attempt(), threading.Event()
        one.delay = 60.0
        stopping = threading.Timer(0.05, stop.set)
        stopping.start()
        began = time.monotonic()
        one.pause(stop)
        assert time.monotonic() - began < 60

    def test_async_waiter_acquires_after_the_release(self):
        async def wait():
            async with fenced_lock(NAME, ttl=30, timeout=60) as lock:
                return lock.waited

        lock = fenced_lock(NAME, ttl=30).__enter__()

        def release():
            with connection.cursor() as cursor:
                asked = "SELECT count(*) FROM django_dblock_fencedticket"
                observe.until(
                    lambda: cursor.execute(asked) or cursor.fetchone() == (1,), "it waits"
                )
            lock.release()

        releasing = started(release)
        assert run(wait()) > 0
        releasing.join()

    def test_timeout_ends_the_wait_in_the_queue(self, monkeypatch):
        """By itself the waiter would look again after a minute."""
        monkeypatch.setattr(acquire, "_SIGN", 60.0)
        with fenced_lock(NAME, ttl=600):
            one = attempt()
            queueing.until_it_can_be_woken(one)
            queueing.stay_queued()
            assert one.delay > 10
            one._timeout = monotonic() - one._started + 10
            assert one.once() is None
            assert one.delay <= 10, "it sleeps no longer than its time lasts"
            one._timeout = 0.0
            with pytest.raises(LockTimeout):
                one.once()
            one.close()


class TestEdges:
    def test_waiter_with_a_lost_ticket_listens_for_a_new_one(self, observer):
        lock = fenced_lock(NAME, ttl=300).__enter__()
        one = attempt()
        queueing.until_it_can_be_woken(one)
        first = one._subscription
        observer.execute("TRUNCATE django_dblock_fencedticket")
        assert one.once() is None
        assert one._subscription is None
        one.delay = 0.0
        one.pause()
        assert one._subscription.topic == one._ticket.topic != first.topic
        one.close()
        lock.release()

    def test_timeout_is_raised_although_the_ticket_stays(self):
        statement, _ = template_of(sql.DROP_TICKET)

        refused = []

        def refuse(execute, text, *rest):
            if text == statement:
                refused.append(text)
                raise OperationalError("the server is gone")
            return execute(text, *rest)

        with fenced_lock(NAME, ttl=30), connection.execute_wrapper(refuse):
            with pytest.raises(LockTimeout):
                fenced_lock(NAME, ttl=30, timeout=0.3, fair=True).__enter__()
        assert len(refused) == 1

    def test_batch_of_released_leases_sends_nothing(self):
        with fenced_lock(NAME, ttl=60) as lock:
            batch = heartbeat._batch_of(lock.trust)
        own = heartbeat.Heartbeat("default")
        own._beat(batch, [lock.trust])
        assert own._line is None


class TestIsolation:
    """Above READ COMMITTED a row that changed meanwhile is an error of the server's, not a wait."""

    @pytest.fixture(params=["repeatable read", "serializable"], autouse=True)
    def _isolation(self, request):
        with connection.cursor() as cursor:
            cursor.execute(f"SET default_transaction_isolation = '{request.param}'")
        yield
        connection.close()

    RENEW = "UPDATE django_dblock_fencedlock SET renewed_at = clock_timestamp()"
    MAKE = (
        "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at, renewed_at,"
        " expires_at, lock_delay, grants, metadata) VALUES (%s, 0, 1, 'another', now(), now(),"
        " now() + interval '1 minute', '0', 1, '{}')"
    )

    def test_wait_is_retried_on_serialization_failure(self, rival, observer):
        one = attempt()
        with fenced_lock(NAME, ttl=30):
            while one._ticket is None:
                one.once()
            assert while_the_row_changes(rival, observer, one.once, self.RENEW) is None
        one.close()

    def test_loser_of_the_insert_race_learns_the_holder(self, rival, observer):
        def enter():
            with pytest.raises(LockTimeout, match="locked by another"):
                fenced_lock(NAME, ttl=30).__enter__()

        while_the_row_changes(rival, observer, enter, self.MAKE, [NAME])

    def test_release_is_retried_on_serialization_failure(self, rival, observer):
        lock = fenced_lock(NAME, ttl=30).__enter__()
        assert while_the_row_changes(rival, observer, lock.release, self.RENEW)
