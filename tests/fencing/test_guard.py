"""The guard: a transaction that commits only while the lease is held."""

import pytest
from django.db import IntegrityError, connection, transaction

from django_dblock import FencedLock, LockLost, LockTimeout, fenced_lock, force_release
from django_dblock.fencing import store
from tests.app.models import Account
from tests.fencing.helpers import NAME, SEEN, Always, expire, started
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]


@pytest.fixture
def lock():
    with fenced_lock(NAME, ttl=30) as held:
        yield held


def setting(name):
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        return cursor.fetchone()[0]


def test_guard_costs_one_message_with_its_begin(lock, statements):
    with statements() as sent, lock.guard():
        pass
    kinds = [query["sql"].split()[0].rstrip(";") for query in sent]
    assert kinds == ["BEGIN", "BEGIN", "COMMIT"], "Django's note, the message, the commit"
    assert "FOR KEY SHARE" in sent[1]["sql"]


def test_guard_joins_an_open_transaction(lock, statements):
    with transaction.atomic(), statements() as sent:
        Account.objects.create(name="a")
        with lock.guard():
            Account.objects.create(name="b")
        assert len(sent) == 3, "two inserts and the guard"


def test_guarded_writes_commit_or_roll_back_together(lock):
    with pytest.raises(ZeroDivisionError), lock.guard():
        Account.objects.create(name="a")
        raise ZeroDivisionError
    assert not Account.objects.exists()
    with lock.guard():
        Account.objects.create(name="a")
    assert Account.objects.exists()
    lock.check()


@pytest.mark.parametrize("seen", SEEN)
def test_expired_lease_is_not_granted_before_guard_commits(lock, seen, observer, monkeypatch):
    monkeypatch.setattr(store, "_granted", Always(seen))
    with lock.guard():
        expire(observer)
        with pytest.raises(LockTimeout) as caught:
            in_another_thread(fenced_lock(NAME, ttl=30).__enter__)
        assert "faster" in caught.value.holder, "the lease is over, but the row is not free"
    FencedLock.objects.update(expires_at="2200-01-01T00:00Z")


def test_joined_guard_lasts_until_the_outer_commit(lock, observer):
    with transaction.atomic():
        with lock.guard():
            pass
        expire(observer)
        with pytest.raises(LockTimeout):
            in_another_thread(fenced_lock(NAME, ttl=30).__enter__)
    FencedLock.objects.update(expires_at="2200-01-01T00:00Z")


def in_another_thread(function):
    caught = []

    def run():
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            caught.append(error)

    started(run).join()
    for error in caught:
        raise error


def test_negative_twin_for_share_blocks_the_heartbeat(lock, rival, monkeypatch):
    plain, tries = store.renew, []
    monkeypatch.setattr(store, "renew", lambda *a: tries.append(plain(*a)) or tries[-1])
    rival.execute("BEGIN; SELECT FROM django_dblock_fencedlock FOR KEY SHARE")
    lock.renew()
    rival.execute("SELECT FROM django_dblock_fencedlock FOR SHARE")
    first = lock.expires_at
    tries.clear()
    renewing = started(lock.renew)
    observe.until(lambda: tries, "a try has met the locked row")
    assert tries[0].expires_at is None
    assert lock.expires_at == first
    rival.execute("ROLLBACK")
    renewing.join()
    assert lock.expires_at > first


def test_guard_of_a_taken_over_lease_raises_lock_lost(lock):
    FencedLock.objects.update(token=lock.token + 1)
    with pytest.raises(LockLost, match="no longer has the lease with this token"), lock.guard():
        Account.objects.create(name="a")
    assert lock.lost
    assert not Account.objects.exists()
    FencedLock.objects.update(token=lock.token)
    lock.trust._reason = None


def test_refusal_leaves_the_joined_transaction_usable(observer):
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
        with transaction.atomic():
            Account.objects.create(name="before")
            expire(observer)
            with pytest.raises(LockLost), lock.guard():
                pytest.fail("not held")
            Account.objects.create(name="after")
        assert Account.objects.count() == 2


def test_statement_error_marks_joined_transaction_for_rollback(lock, monkeypatch):
    from django_dblock.sql import fencing as sql

    with monkeypatch.context() as patch, pytest.raises(Exception, match="division by zero"):
        patch.setattr(sql, "GUARD", "SELECT %(idle_timeout)s / 0")
        with transaction.atomic():
            with pytest.raises(Exception, match="division by zero"), lock.guard():
                pass
            assert connection.needs_rollback
            raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("ttl", "asked", "shown"), [(29, None, "30s"), (120, None, "2min"), (29, 2.5, "2500ms")]
)
def test_guard_sets_the_idle_timeout_for_its_transaction_only(ttl, asked, shown):
    """By default after the larger of ttl and 30 s, whatever the heartbeat does."""
    with fenced_lock(NAME, ttl=ttl, heartbeat=False) as lock:
        with lock.guard(idle_timeout=asked):
            assert setting("idle_in_transaction_session_timeout") == shown
        assert setting("idle_in_transaction_session_timeout") == "0", "only for the transaction"


def test_stricter_session_timeout_stays(lock):
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '5s'")
    with lock.guard():
        assert setting("idle_in_transaction_session_timeout") == "5s"
    with lock.guard(idle_timeout=2):
        assert setting("idle_in_transaction_session_timeout") == "2s"
    connection.close()


@pytest.mark.parametrize("value", [0, -1, "1"])
def test_wrong_idle_timeout_is_refused(lock, value):
    with pytest.raises(ValueError, match="idle_timeout="):
        lock.guard(idle_timeout=value)


def test_too_long_idle_timeout_is_capped(lock):
    with lock.guard(idle_timeout=2_147_483):
        assert setting("idle_in_transaction_session_timeout") == "2147483s"


def test_force_release_waits_for_an_open_guard(lock, observer):
    done = []
    with lock.guard():
        forcing = started(lambda: done.append(force_release(NAME)))
        observe.until(
            lambda: observer.execute(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ).fetchall(),
            "it waits",
        )
        Account.objects.create(name="a")
        assert done == []
    forcing.join()
    assert done == [True]
    with pytest.raises(LockLost), lock.guard():
        Account.objects.create(name="b")
    FencedLock.objects.update(token=lock.token, expires_at="2200-01-01T00:00Z")
    lock.trust._reason = None


def test_error_in_guard_propagates(lock):
    Account.objects.create(name="a")
    with pytest.raises(IntegrityError), lock.guard():
        Account.objects.create(name="a")
    lock.check()
