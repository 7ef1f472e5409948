"""race(): threads that start together."""

import threading

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TestCase, TransactionTestCase

from django_dblock import LockTimeout, advisory_lock
from django_dblock.testing import race as racing
from django_dblock.testing import threads
from tests.app.models import Counter
from tests.helpers import observe, recipes

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


def add_one(lock):
    with transaction.atomic(), lock("counter"):
        counter = Counter.objects.get()
        counter.value += 1
        counter.save()


class InATransactionTestCase(TransactionTestCase):
    def test_locked_race_loses_no_update(self):
        Counter.objects.create(name="hits")
        racing(4, lambda: [add_one(advisory_lock) for _ in range(20)])
        assert Counter.objects.get().value == 80


def test_negative_twin_unlocked_race_loses_updates(race):
    Counter.objects.create(name="hits")
    race(8, lambda: [add_one(recipes.no_lock) for _ in range(50)])
    assert Counter.objects.get().value < 400


class InATestCase(TestCase):
    def test_testcase_is_refused_with_a_reason(self):
        with pytest.raises(RuntimeError, match=r"race\(\).*'default'.*TransactionTestCase"):
            racing(2, print)


def test_each_thread_has_its_connection(race, observer):
    def backend():
        return connection.connection.info.backend_pid

    pids = race(3, backend)
    assert len({*pids, backend()}) == 4
    alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"
    observe.until(lambda: observer.execute(alive, [pids]).fetchone() == (0,), "all are closed")


def test_threads_start_together(race, observer, monkeypatch):
    """The first is let go when the last, however slow, has its connection."""
    real, ready = type(connections["default"]).ensure_connection, set()

    def ensure(self):
        if threading.current_thread().name == "race-2":
            observe.until(lambda: len(ready) >= 2, "the others are ready")
        real(self)
        if threading.current_thread().name.startswith("race-"):
            ready.add(threading.current_thread().name)

    monkeypatch.setattr(type(connections["default"]), "ensure_connection", ensure)
    assert race(3, lambda: len(ready)) == [3, 3, 3]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_using_races_on_another_alias(race):
    def opened():
        return [each.alias for each in connections.all(initialized_only=True) if each.connection]

    assert race(2, opened, using="other") == [["other"]] * 2


def test_function_gets_its_number(race):
    assert race(3, lambda number: number * 2) == [0, 2, 4]
    assert race(2, lambda: "none") == ["none"] * 2
    assert race(2, str) == ["", ""]
    assert race(2, iter([5, 5]).__next__) == [5, 5]


def test_expected_errors_are_returned(race, hold_lock):
    hold_lock("a")

    def work(number):
        with advisory_lock("a" if number else "b", timeout=0):
            return "had it"

    had, *others = race(3, work, catch=LockTimeout)
    assert had == "had it"
    assert [type(each) for each in others] == [LockTimeout] * 2


def test_other_errors_are_raised_together(race):
    def fail(number):
        raise ZeroDivisionError(number)

    with pytest.raises(ZeroDivisionError) as caught:
        race(2, fail)
    assert str(caught.value) == "0"
    assert caught.value.__notes__ == ["race(): another thread raised ZeroDivisionError(1)"]


def test_failed_start_releases_the_others(race, monkeypatch):
    """Its error is raised, not that of those who were let down."""
    real = type(connections["default"]).ensure_connection

    def ensure(self):
        if threading.current_thread().name == "race-1":
            raise ConnectionError("no more connections")
        real(self)

    monkeypatch.setattr(
        type(connections["default"]),
        "ensure_connection",
        ensure,
    )

    with pytest.raises(ConnectionError, match="no more"):
        race(3, lambda: None)


def test_hanging_thread_is_named(race, hold_lock, monkeypatch):
    """The time is over once the first thread has ended and the second one waits."""
    busy = hold_lock("a")
    before = iter([0.0, 0.0])  # at the start, and while the first thread is waited for

    def clock():
        if (seconds := next(before, None)) is None:
            busy.until_waited_for()
            return 60.0
        return seconds

    def wait(number):
        if number:
            with advisory_lock("a", timeout=None):
                pass

    monkeypatch.setattr(threads, "monotonic", clock)
    with pytest.raises(TimeoutError, match=r"1 of 2 threads have not ended after 60 s: number 1"):
        race(2, wait)
    busy.release()
    observe.until(lambda: not _racing(), "the thread ends")


def _racing():
    return [each for each in threading.enumerate() if each.name.startswith("race-")]


def test_race_without_threads_is_refused(race):
    with pytest.raises(ValueError, match="at least one"):
        race(0, print)


def test_thread_that_never_began_has_no_result(race, monkeypatch):
    """Else a race that nobody ran would look like one that everybody lost."""

    connect = BaseDatabaseWrapper.ensure_connection

    def fail(self):
        if threading.current_thread().name.startswith("race-"):
            raise OperationalError("too many clients")
        connect(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", fail)
    with pytest.raises(OperationalError, match="too many clients"):
        race(2, print, catch=Exception)
