"""Signals: when they are sent, and their data."""

from contextlib import suppress

import pytest
from django.db import IntegrityError, ProgrammingError, connection, transaction

from django_dblock import advisory_lock, advisory_locks
from django_dblock.signals import lock_acquired, lock_deadlock, lock_released
from tests.helpers.locks import deadlock

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def heard():
    found = []

    def hear(signal, sender, **data):
        found.append((signal, sender, data))

    for signal in (lock_acquired, lock_released, lock_deadlock):
        signal.connect(hear)
    yield found
    for signal in (lock_acquired, lock_released, lock_deadlock):
        signal.disconnect(hear)


def test_signals_carry_their_data(heard):
    with advisory_lock("a", 1, shared=True):
        pass
    [acquired, released] = heard
    assert acquired[:2] == (lock_acquired, advisory_lock)
    assert acquired[2] == {
        "kind": "advisory", "keys": (("a", 1),), "name": "a:1", "using": "default",
        "shared": True, "waited": 0.0, "took": acquired[2]["took"],
    }  # fmt: skip
    assert released[2].keys() == {*acquired[2], "held", "committed"} - {"waited", "took"}


def test_joined_transaction_sends_no_release(heard):
    with transaction.atomic(), advisory_locks(["a", "b"]):
        pass
    assert [signal for signal, _, _ in heard] == [lock_acquired]


@pytest.mark.parametrize("how", ["error", "set_rollback", "swallowed", "closed"])
def test_rollback_is_reported_as_not_committed(how, heard):
    """Also the one that nobody asked for: COMMIT after a swallowed error is a rollback."""
    with suppress(ZeroDivisionError), advisory_lock("a"):
        if how == "error":
            raise ZeroDivisionError
        if how == "swallowed":
            with suppress(ProgrammingError), connection.cursor() as cursor:
                cursor.execute("SELECT nothing")
        elif how == "closed":
            connection.close()
        else:
            transaction.set_rollback(True)
    assert heard[-1][2]["committed"] is False


def test_failed_commit_is_reported_as_unknown(heard):
    with pytest.raises(IntegrityError), advisory_lock("a"), connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE two (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        cursor.execute("INSERT INTO two VALUES (1), (1)")
    assert heard[-1][2]["committed"] is None


def test_deadlock_sends_its_signal(heard, rival, observer):
    deadlock(rival, observer)
    assert heard[-1][0] is lock_deadlock
    assert heard[-1][2]["waited"] > 0
