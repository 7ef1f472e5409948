"""Leases through PgBouncer in transaction mode: nothing depends on a session."""

import pytest
from django.db import connection

from django_dblock import (
    FencedLock,
    LockLost,
    LockTimeout,
    StaleFence,
    fenced_lock,
    force_release,
    purge_fenced_locks,
)
from tests.app.models import Account
from tests.fencing.helpers import NAME, count_up, expire, row, until_renewed
from tests.helpers.processes import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.usefixtures("pooled"),
    pytest.mark.server,
]


def test_lease_is_renewed_guarded_and_released(observer):
    account = Account.objects.create(name="a")
    with fenced_lock(NAME, ttl=3) as lock:
        until_renewed(observer)
        until_renewed(observer)
        lock.renew(ttl=30)
        with lock.guard():
            Account.objects.update(balance=1)
        account.save_fenced(lock)
        with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
            pass
    with fenced_lock(NAME, ttl=30, fair=True, timeout=1) as second:
        assert second.token > lock.token


def test_stale_holder_is_refused(observer):
    account = Account.objects.create(name="a")
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as old:
        expire(observer)
        with fenced_lock(NAME, ttl=30), pytest.raises(StaleFence):
            account.save_fenced(old)


def test_nothing_of_a_session_is_left_for_the_next_client():
    with fenced_lock(NAME, ttl=30) as lock, lock.guard(idle_timeout=1):
        pass
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("0",)
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("off",), "as the test's server has it"


def test_many_processes_on_one_key_lose_no_count(pooled):
    race(4, count_up, 15, options=pooled)
    assert row("count").metadata == {"value": 60}


def test_force_release_and_purge_work():
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=30):
        assert force_release(NAME) is True
    assert purge_fenced_locks() == 0
    assert FencedLock.objects.exists()
