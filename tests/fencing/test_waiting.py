"""Waiting: polls with backoff, and a fair queue."""

import threading

import pytest
from django.db import connections

from django_dblock import LockTimeout, fenced_lock
from django_dblock.fencing import acquire as waiting
from django_dblock.fencing.store import Refusal
from django_dblock.models import FencedTicket
from tests.fencing.helpers import NAME, attempt, expire
from tests.helpers import observe
from tests.helpers.processes import process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]


def tickets(observer):
    return [row[0] for row in observer.execute(
        "SELECT id FROM django_dblock_fencedticket ORDER BY id").fetchall()]  # fmt: skip


class TestPolling:
    def test_sleeps_grow_with_jitter(self):
        one = attempt()
        seen = []
        for _ in range(60):
            one._plan(Refusal(1000, 1, ""), None)
            seen.append(one.delay)
        assert all(0.01 <= delay <= 0.5 for delay in seen)
        assert len(set(seen)) > 50
        assert max(seen) > 0.1

    def test_sleep_is_bounded_by_the_holders_remaining_time(self):
        one = attempt()
        for _ in range(60):
            one._plan(Refusal(0.02, 1, ""), None)
            assert one.delay <= 0.02

    def test_sleep_is_bounded_by_the_timeout(self):
        one = attempt()
        one._plan(Refusal(1000, 1, ""), 0.003)
        assert one.delay <= 0.003

    def test_timeout_ends_the_wait(self, statements):
        with fenced_lock(NAME, ttl=30):
            with pytest.raises(LockTimeout) as caught, fenced_lock(NAME, ttl=30, timeout=0.05):
                pass
        assert caught.value.waited >= 0.05
        assert caught.value.timeout == 0.05

    def test_timeout_applies_without_a_result(self, monkeypatch):
        monkeypatch.setattr(waiting.store, "acquire", lambda *_: None)
        with pytest.raises(LockTimeout, match="another holder that was faster"):
            fenced_lock(NAME, ttl=30, timeout=0.02).__enter__()

    def test_open_guard_of_an_expired_lease_is_named(self, rival):
        with fenced_lock(NAME, ttl=30):
            pass
        rival.execute("BEGIN")
        rival.execute("SELECT FROM django_dblock_fencedlock WHERE name = %s FOR KEY SHARE", [NAME])
        with pytest.raises(LockTimeout, match="under the last holder's guard that is still open"):
            fenced_lock(NAME, ttl=30).__enter__()
        rival.execute("ROLLBACK")
        fenced_lock(NAME, ttl=30).__enter__().release()

    @pytest.mark.processes
    def test_waiter_acquires_after_the_release(self, observer):
        with process(wait, {"timeout": None}) as waiter:
            with fenced_lock(NAME, ttl=30):
                waiter.send("try")
                assert waiter.receive() == "trying"
                observe.until(lambda: tickets(observer), "it queues")
            assert waiter.receive() > 0

    @pytest.mark.processes
    def test_waiter_acquires_after_the_expiry(self, observer):
        block = fenced_lock(NAME, ttl=30, heartbeat=False)
        with pytest.raises(Exception, match="is lost"), block:
            with process(wait, {"timeout": 60}) as waiter:
                waiter.send("try")
                assert waiter.receive() == "trying"
                observe.until(lambda: tickets(observer), "it queues")
                expire(observer)
                assert waiter.receive() > 0


def wait(channel, arguments):
    channel.receive()
    channel.send("trying")
    with fenced_lock(NAME, ttl=30, **arguments) as lock:
        return lock.waited


class TestInTurn:
    def test_uncontended_acquire_is_one_statement(self, statements, observer):
        with statements() as sent:
            with fenced_lock(NAME, ttl=30, fair=True):
                assert len(sent) == 1
        assert tickets(observer) == []

    def test_timeout_0_takes_no_ticket(self, observer):
        with fenced_lock(NAME, ttl=30):
            with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30, fair=True):
                pass
            assert tickets(observer) == []

    def test_first_come_first_served(self, observer):
        """Each joins the queue when the one before is in it."""
        order, threads = [], []

        def come(number):
            with fenced_lock(NAME, ttl=30, timeout=60, fair=True):
                order.append(number)
            connections.close_all()

        with fenced_lock(NAME, ttl=30):
            for number in range(6):
                threads.append(threading.Thread(target=come, args=[number]))
                threads[-1].start()
                observe.until(lambda n=number: len(tickets(observer)) == n + 1, "it queues")
        for thread in threads:
            thread.join()
        assert order == list(range(6))
        assert tickets(observer) == []

    def test_later_waiter_does_not_overtake(self, observer):
        """The lock is free, and somebody stands in the queue."""
        with fenced_lock(NAME, ttl=30):
            first = attempt(in_turn=True)
            assert first.once() is None
        with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30, fair=True):
            pass
        second = attempt(in_turn=True)
        assert second.once() is None
        assert second.once() is None
        success = first.once()
        assert success is not None
        assert tickets(observer) == [second._ticket.id]
        second.close()
        second.close()
        assert tickets(observer) == []

    def test_queue_for_a_new_name_refuses_newcomers(self, observer):
        """No row is there to be refused by: the queue alone says no."""
        first = attempt(in_turn=True)
        first._ticket = waiting.store.take_ticket(first.place, 0, 60)
        second = attempt(in_turn=True)
        assert second.once() is None
        assert second.delay == 0
        assert second.once() is None
        assert second._ticket is not None
        assert second.once() is None
        assert second.delay > 0
        assert first.once() is not None
        second.close()

    def test_dead_waiter_is_skipped(self, observer):
        with fenced_lock(NAME, ttl=30):
            dead = attempt(in_turn=True)
            dead.once()
        observer.execute("UPDATE django_dblock_fencedticket SET expires_at = clock_timestamp()")
        with fenced_lock(NAME, ttl=30, fair=True):
            pass
        dead.close()

    def test_waiter_refreshes_its_ticket_rarely(self, observer, statements):
        with fenced_lock(NAME, ttl=30):
            one = attempt(in_turn=True)
            one.once()
            before = observer.execute(
                "SELECT expires_at FROM django_dblock_fencedticket"
            ).fetchone()
            one.once()
            with statements() as sent:
                one.once()
            assert ["UPDATE" in query["sql"] for query in sent] == [False]
            one._shown -= waiting._PATIENCE / 3
            with statements() as sent:
                one.once()
            assert ["UPDATE" in query["sql"] for query in sent] == [True]
            after = observer.execute("SELECT expires_at FROM django_dblock_fencedticket").fetchone()
            assert after > before
        one.close()

    def test_purged_ticket_is_replaced(self, observer):
        with fenced_lock(NAME, ttl=30):
            one = attempt(in_turn=True)
            one.once()
            observer.execute("TRUNCATE django_dblock_fencedticket")
            one._shown -= waiting._PATIENCE / 3
            one.once()
            assert tickets(observer) == [one._ticket.id]
            assert str(FencedTicket.objects.get()) == f"nightly-sync (ticket {one._ticket.id})"
        one.close()

    def test_timeout_removes_the_ticket(self, observer):
        with fenced_lock(NAME, ttl=30):
            with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30, timeout=0.05, fair=True):
                pass
        assert tickets(observer) == []
