"""Waking waiters by LISTEN and NOTIFY, and noticing where nobody can listen."""

import threading

import psycopg
import pytest
from django.db import connection, transaction

from django_dblock.core import notify
from django_dblock.core.connection import dedicated
from tests.fencing.helpers import run
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


@pytest.fixture(autouse=True)
def listeners(monkeypatch):
    """Listeners of this test's own, which end with it."""
    monkeypatch.setattr(notify, "_LINGER", 0.0)
    monkeypatch.setattr(notify, "_listeners", {})
    yield notify._listeners
    observe.until(lambda: not threads(), "the listeners end")


def threads():
    return [one for one in threading.enumerate() if one.name == "dblock-listener"]


@pytest.fixture
def subscription():
    found = notify.subscribe("default", "topic")
    yield found
    found.close()
    found.close()


def until_heard(subscription):
    observe.until(lambda: subscription.heard, "somebody listens")
    # It is woken once, for what nobody had heard before: a moment after somebody listens.
    assert subscription.wait(60)


def test_waiter_is_woken_only_by_a_commit(subscription):
    until_heard(subscription)
    with transaction.atomic():
        notify.notify(connection, "topic")
        assert not subscription.wait(0.05), "not before the commit"
    assert subscription.wait(60)
    notify.notify(connection, "another")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        notify.notify(connection, "topic")
        raise ZeroDivisionError
    assert not subscription.wait(0.05)


def test_late_wake_up_is_kept_for_the_next_wait(subscription, monkeypatch):
    until_heard(subscription)
    plain_wait = subscription._event.wait

    def wait(seconds):
        woken = plain_wait(seconds)
        subscription.wake()
        return woken

    with monkeypatch.context() as patch:
        patch.setattr(subscription._event, "wait", wait)
        assert not subscription.wait(0)
    assert subscription.wait(0)


def test_all_waiters_share_a_thread_and_a_connection(subscription, observer):
    others = [notify.subscribe("default", "topic") for _ in range(5)]
    until_heard(subscription)
    assert len(threads()) == 1

    def listening():
        return observer.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tests listener'"
            " AND datname = current_database() AND query LIKE 'LISTEN %'"
        ).fetchone()

    # The backend of an earlier test's listener ends a moment after its client. A pooler keeps the
    # backend of one that gave up, which has not listened.
    observe.until(lambda: listening() == (1,), "one listens")
    notify.notify(connection, "topic")
    for one in others:
        assert one.wait(60)
        one.close()


def test_async_waiter_is_woken(subscription):
    async def wait():
        assert not await subscription.await_(0.01)
        threading.Timer(0.05, subscription.wake).start()
        assert await subscription.await_(60)
        subscription.wake()
        assert await subscription.await_(60), "it was woken before it waited"

    until_heard(subscription)
    run(wait())


def test_closed_event_loop_is_tolerated(subscription):
    import asyncio

    loop = asyncio.new_event_loop()
    loop.close()
    subscription._async = (loop, asyncio.Event())
    subscription.wake()
    subscription._async = None


def test_lost_connection_wakes_all_and_reconnects(subscription, observer):
    until_heard(subscription)
    observer.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'tests listener' AND datname = current_database()"
    )
    assert subscription.wait(60), "so that it looks more often"
    until_heard(subscription)
    notify.notify(connection, "topic")
    assert subscription.wait(60)


def test_transaction_pooling_disables_listening(pooler, monkeypatch, listeners):
    """It takes LISTEN and loses it; nothing has to be set for it to be noticed."""

    def through_the_pooler(alias):
        found = dedicated(alias)
        found.settings_dict["HOST"], found.settings_dict["PORT"] = "127.0.0.1", str(pooler)
        return found

    monkeypatch.setattr(notify, "dedicated", through_the_pooler)
    subscription = notify.subscribe("default", "topic")
    listener = listeners["default"]
    observe.until(lambda: listener._deaf_until > 0 and not threads(), "it gives up")
    assert not subscription.heard
    assert not threads(), "it is not tried again at once"
    subscription.close()


def test_hidden_driver_disables_listening(monkeypatch, listeners):
    monkeypatch.setattr(notify, "unwrapped", lambda _: None)
    subscription = notify.subscribe("default", "topic")
    observe.until(lambda: listeners["default"]._deaf_until > 0 and not threads(), "it gives up")
    assert not subscription.heard
    subscription.close()


def test_unreachable_server_disables_listening(monkeypatch, listeners):
    def unreachable(_self, _connection):
        raise psycopg.OperationalError("no route")

    monkeypatch.setattr(notify.Listener, "_listen", unreachable)
    subscription = notify.subscribe("default", "topic")
    observe.until(lambda: listeners["default"]._deaf_until > 0 and not threads(), "it gives up")
    assert not subscription.heard
    subscription.close()


def test_removed_alias_ends_its_listener(monkeypatch, listeners):
    """The thread must not die with its name still on the door."""
    monkeypatch.setattr(notify, "dedicated", {}.__getitem__)
    subscription = notify.subscribe("default", "topic")
    observe.until(lambda: listeners["default"]._deaf_until > 0, "it gives up")
    observe.until(lambda: listeners["default"]._thread is None, "another may be started")
    subscription.close()


def test_failed_thread_start_makes_waiters_poll(monkeypatch):
    def fail(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        subscription = notify.subscribe("default", "topic")
        assert not subscription.heard
    subscription.close()


def test_forked_child_has_no_listeners(monkeypatch, listeners):
    listeners["default"] = object()
    monkeypatch.setattr(notify, "_mutex", notify._mutex)
    notify._leave_to_parent()
    assert listeners == {}
    assert notify._of_parents.pop().keys() == {"default"}


def test_topics_are_short_and_distinct():
    assert len(notify.topic("x" * 10_000)) == 32
    parts = [("a", "b"), ("ab",), ("a", "b", ""), ("\ud800",)]
    assert len({notify.topic(*each) for each in parts}) == len(parts)
    assert notify.topic("latch", 7) == notify.topic("latch", "7")
