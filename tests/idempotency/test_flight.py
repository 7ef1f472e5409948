"""The same request twice at once, in real processes: one runs, the other gets 409 or waits.

Each effect is a row of its own, so nothing but the key keeps two requests apart.
"""

import threading
import time
from types import SimpleNamespace

import pytest
from django.db import OperationalError, connection, transaction

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import client
from tests.app.models import Document
from tests.helpers import observe
from tests.helpers.processes import process, race
from tests.idempotency import calling, leasing
from tests.idempotency.calling import problem
from tests.idempotency.flight import DURING, charge, documents, pay, told

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.usefixtures("limited"),
    pytest.mark.loss,
]

ATOMIC = [("own", "own"), ("own", "joined"), ("joined", "own"), ("joined", "joined")]
pairs = pytest.mark.parametrize(("theirs", "ours"), [*ATOMIC, ("lease", "lease")])
"""How the first request meets the database, and how the second: in a transaction of the decorator's
own, in one that is open, or in lease mode."""

LONG = 60
"""Seconds to wait, where what ends the wait is what the test does."""


def view(kind, wait=0):
    if kind == "lease":
        return idempotent(scope=client, mode="lease", wait=wait)(charge)
    return idempotent(scope=client, wait=wait)(pay)


def ask(kind, *, wait=0, **more):
    call = calling.ask_joined if kind == "joined" else calling.ask
    return call(view(kind, wait), **more)


# Who runs, in other processes


def runs(channel, kind):
    """Run the request, and stop inside its view until told how that ends."""

    def stop():
        channel.send(connection.connection.info.backend_pid)
        if (end := channel.receive()) == "raise":
            raise RuntimeError("the view fails")
        return int(end)

    DURING.append(stop)
    return told(ask(kind))


def stays_open(channel, kind):
    """As under ``ATOMIC_REQUESTS``: the view is over, and the transaction is not."""
    with transaction.atomic():
        response = view(kind)(calling.request(), "201")
        channel.send(told(response))
        transaction.set_rollback(channel.receive() == "rollback")


def waits(channel, kind):
    """Ask, and wait; in lease mode, where nobody sees a blocked backend, say so."""
    if kind == "lease":
        tell_when_waiting(channel)
    return told(ask(kind, wait=LONG))


def tell_when_waiting(channel):
    from django_dblock.idempotency import lease_mode as leased

    said = []

    def sleep(seconds):
        if not said:
            said.append(channel.send("waiting"))
        time.sleep(seconds)

    leased.time = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)


def until_waiting(second, kind, observer):
    if kind == "lease":
        assert second.receive() == "waiting"
    else:
        observe.until_blocked(observer)


def finish(first, backend, end, observer):
    """End the first run; see that it has ended so."""
    if end == "SIGKILL":
        first.kill()
    elif end == "pg_terminate_backend":
        observer.execute("SELECT pg_terminate_backend(%s, 90000)", [backend])
        first.send("201")
        with pytest.raises(OperationalError):
            first.receive()
    elif end == "raise":
        first.send("raise")
        with pytest.raises(RuntimeError, match="the view fails"):
            first.receive()
    else:
        first.send(end)
        assert first.receive()[:2] == (int(end), False)


# 409 at once


@pairs
def test_running_request_is_409_at_once(theirs, ours):
    with process(runs, theirs) as first:
        first.receive()
        busy = ask(ours)
        assert problem(busy) == (409, "in_progress")
        assert busy.headers["Retry-After"] == ("5" if ours == "lease" else "1")
        # Another key and another client are none of its business.
        assert told(ask(ours, key="other"))[:2] == (201, False)
        assert told(ask(ours, **{"X-Client": "other"}))[:2] == (201, False)
        first.send("201")
        answer = first.receive()
    assert told(ask(ours)) == (201, True, answer[2])
    assert len(documents()) == 3


@pytest.mark.parametrize("ours", ["own", "joined"])
def test_request_is_in_flight_until_the_outer_commit(ours):
    with process(stays_open, "own") as first:
        status, _, document = first.receive()
        assert status == 201
        assert problem(ask(ours)) == (409, "in_progress")
        first.send("commit")
        first.receive()
    assert told(ask(ours)) == (201, True, document)
    assert documents() == [document]


@pytest.mark.parametrize("ours", ["own", "joined"])
def test_outer_rollback_forgets_the_request(ours):
    with process(stays_open, "own") as first:
        first.receive()
        first.send("rollback")
        first.receive()
    status, replayed, document = told(ask(ours))
    assert (status, replayed) == (201, False)
    assert documents() == [document]


def test_repeat_in_one_transaction_replays():
    with transaction.atomic():
        first, again = (view("own")(calling.request(), "201") for _ in range(2))
    assert told(again) == (201, True, told(first)[2])
    assert len(documents()) == 1


# wait=


@pairs
@pytest.mark.parametrize("end", ["201", "500", "raise", "SIGKILL", "pg_terminate_backend"])
def test_waiter_gets_the_response_or_runs(theirs, ours, end, observer):
    with process(runs, theirs) as first:
        backend = first.receive()
        with process(waits, ours) as second:
            until_waiting(second, ours, observer)
            finish(first, backend, end, observer)
            if ours == "lease" and end in ("SIGKILL", "pg_terminate_backend"):
                leasing.expire()  # nobody else can know that the run is dead
            answer = second.receive()
    [document] = documents()
    assert answer == (201, end == "201", document)
    assert told(ask(ours)) == (201, True, document)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("ours", ["own", "joined"])
def test_waiter_waits_for_the_outer_commit(ours, end, observer):
    with process(stays_open, "own") as first:
        theirs = first.receive()[2]

        def go_on():
            observe.until_blocked(observer)
            first.send(end)

        then = threading.Thread(target=go_on)
        then.start()
        answer = told(ask(ours, wait=LONG))
        then.join()
        first.receive()
    [document] = documents()
    assert answer == (201, end == "commit", document)
    assert (document == theirs) is (end == "commit")


def test_one_waiter_reruns_a_dead_request(observer):
    with process(runs, "own") as first:
        first.receive()
        with process(waits, "own") as a, process(waits, "joined") as b, process(waits, "own") as c:
            observe.until_blocked(observer, waiters=3)
            first.kill()
            answers = [each.receive() for each in (a, b, c)]
    [document] = documents()
    assert sorted(answers, key=lambda answer: answer[1]) == [
        (201, False, document),
        (201, True, document),
        (201, True, document),
    ]


@pairs
def test_timed_out_wait_is_409_and_transaction_usable(theirs, ours):
    with process(runs, theirs) as first:
        first.receive()
        if ours == "joined":
            with transaction.atomic():
                before = Document.objects.create()
                assert problem(view(ours, 0.05)(calling.request(), "")) == (409, "in_progress")
                after = Document.objects.create()
            kept = [before.pk, after.pk]
        else:
            assert problem(ask(ours, wait=0.05)) == (409, "in_progress")
            assert not connection.in_atomic_block
            kept = [Document.objects.create().pk]
        assert set(Document.objects.values_list("pk", flat=True)) == set(kept)
        first.send("201")
        answer = first.receive()
    assert told(ask(ours, wait=0.05)) == (201, True, answer[2])


def test_timed_out_wait_leaves_no_lock(observer):
    with process(runs, "own") as first:
        backend = first.receive()
        with transaction.atomic():
            assert problem(view("joined", 0.05)(calling.request(), "")) == (409, "in_progress")
            assert observe.locks(observer) == [(backend, True)]


@pytest.mark.parametrize("ours", ["own", "joined"])
def test_waiter_waits_although_an_expired_request_has_the_key(ours, observer):
    """Its retention is over, so that it was for something else means nothing."""
    ask("own", body=b"long ago")
    IdempotencyKey.objects.update(expires_at="2020-01-01T00:00:00Z")
    Document.objects.all().delete()
    with process(runs, "own") as first:
        first.receive()
        with process(waits, ours) as second:
            until_waiting(second, ours, observer)
            first.send("201")
            answer = first.receive()
            assert second.receive() == (201, True, answer[2])
    assert documents() == [answer[2]]


# 422 before 409


@pytest.mark.parametrize("wait", [0, LONG])
@pytest.mark.parametrize("ours", ["own", "joined"])
def test_completed_request_replays_without_its_lock(ours, wait):
    """Somebody replays in a long transaction: the same gets its replay, another request its 422."""
    document = told(ask("own"))[2]
    with process(stays_open, "own") as holder:
        assert holder.receive() == (201, True, document)
        assert problem(ask(ours, wait=wait, body=b"other")) == (422, "key_reused")
        assert told(ask(ours, wait=wait)) == (201, True, document)
        holder.send("commit")
        holder.receive()


@pytest.mark.parametrize("ours", ["own", "joined"])
def test_other_request_in_flight_is_409_before_422(ours):
    """In atomic mode nothing is seen of a request before its commit; after that it is 422."""
    with process(runs, "own") as first:
        first.receive()
        assert problem(ask(ours, body=b"other")) == (409, "in_progress")
        first.send("201")
        first.receive()
    assert problem(ask(ours, body=b"other")) == (422, "key_reused")
    assert problem(ask(ours, body=b"other", wait=LONG)) == (422, "key_reused")
    assert len(documents()) == 1


def waits_with_another(channel, kind):
    return ask(kind, wait=LONG, body=b"other").status_code


@pytest.mark.parametrize("ours", ["own", "joined"])
def test_other_request_that_waited_is_422(ours, observer):
    with process(runs, "own") as first:
        first.receive()
        with process(waits_with_another, ours) as second:
            observe.until_blocked(observer)
            first.send("201")
            first.receive()
            assert second.receive() == 422
    assert len(documents()) == 1


def test_lease_mode_other_request_in_flight_is_422():
    with process(runs, "lease") as first:
        first.receive()
        assert problem(ask("lease", body=b"other")) == (422, "key_reused")
        assert problem(ask("lease", body=b"other", wait=LONG)) == (422, "key_reused")
        first.send("201")
        first.receive()
    assert len(documents()) == 1


# A crowd


def one_of_many(number, kind):
    return told(ask(kind, wait=LONG))


@pytest.mark.parametrize("kind", ["own", "joined", "lease"])
def test_concurrent_repeats_have_one_effect(kind):
    answers = race(5, one_of_many, kind)
    [document] = documents()
    assert sorted(replayed for _, replayed, _ in answers) == [False, True, True, True, True]
    assert all((status, told) == (201, document) for status, _, told in answers)


def unprotected(number):
    return told(pay(calling.request(), "201"))


def test_negative_twin_repeats_without_decorator_all_run():
    """The negative twin."""
    race(5, unprotected)
    assert len(documents()) == 5
