"""hold_at_least keeps a key from others, also if its holder never releases it."""

import pytest
from django.db import OperationalError, connection

from django_dblock import (
    FencedLock,
    LockTimeout,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    force_release,
)
from django_dblock.fencing import store
from django_dblock.inspect import fenced_leases
from tests.fencing.helpers import NAME, expire, in_a_thread, lost_at_exit, row, until_expired
from tests.helpers.processes import process

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = {
    "lock": lambda **options: fenced_lock(NAME, **options),
    "lock in turn": lambda **options: fenced_lock(NAME, fair=True, **options),
    "permit": lambda **options: fenced_semaphore(NAME, permits=1, **options),
    "writer": lambda **options: fenced_rwlock(NAME).write(**options),
    "reader": lambda **options: fenced_rwlock(NAME).read(**options),
}
OTHERS = {**KINDS, "reader": KINDS["writer"]}


def pass_time(observer, seconds):
    observer.execute(
        "UPDATE django_dblock_fencedlock SET acquired_at = acquired_at - p, "
        "renewed_at = renewed_at - p, expires_at = expires_at - p FROM make_interval(secs => %s) p",
        [seconds],
    )


def die(kind, **options):
    """Be granted the lease, and never do anything with it again."""
    lease = in_a_thread(KINDS[kind](ttl=30, heartbeat=False, **options).__enter__)
    lease.stop_renewing()


def is_free(kind="lock"):
    try:
        with OTHERS[kind](ttl=30):
            return True
    except LockTimeout:
        return False


def free_after(since):
    """The seconds after that column's time at which the key can be granted again."""
    lease = row()
    return (lease.expires_at + lease.lock_delay - getattr(lease, since)).total_seconds()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_dead_holder_keeps_the_key(kind, known, observer):
    if known:
        with KINDS[kind](ttl=30):
            pass
    die(kind, hold_at_least=60)
    pass_time(observer, 31)
    assert not is_free(kind)
    pass_time(observer, 30)
    assert is_free(kind)


def hold(channel):
    with fenced_lock(NAME, ttl=0.5, hold_at_least=3600):
        channel.send("holds")
        channel.receive()


@pytest.mark.processes
def test_killed_holder_keeps_the_key(observer):
    with process(hold) as holder:
        assert holder.receive() == "holds"
        holder.kill()
        until_expired(observer)
        with pytest.raises(LockTimeout, match=r"3[56]\d\d\.\d s left") as caught:
            fenced_lock(NAME, ttl=30).__enter__()
    assert row().owner in str(caught.value)
    [lease] = fenced_leases()
    assert lease.state == "delayed"
    assert 3500 < lease.free_in < 3600


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({"hold_at_least": 60}, 30),
        ({"hold_at_least": 20}, 0),
        ({"hold_at_least": 60, "lock_delay": 100}, 100),
        ({"hold_at_least": 60, "lock_delay": 10}, 30),
        ({"hold_at_least": 20, "lock_delay": 10}, 10),
    ],
)
def test_dead_holder_keeps_the_key_for_the_longer_time(options, delay):
    with fenced_lock(NAME, ttl=30, **options):
        assert row().lock_delay.total_seconds() == delay


def test_release_ends_the_hold_counted_from_the_grant(observer):
    with fenced_lock(NAME, ttl=30, hold_at_least=60, lock_delay=100) as lock:
        pass_time(observer, 20)
        lock.renew()
        assert free_after("acquired_at") > 120
    assert free_after("acquired_at") == pytest.approx(60, abs=0.01)


def test_dead_holder_keeps_the_key_since_its_renewal(observer):
    """The expiry moves with each renewal, and the rest of hold_at_least with it."""
    with fenced_lock(NAME, ttl=30, hold_at_least=60, heartbeat=False) as lock:
        pass_time(observer, 20)
        lock.renew()
        assert free_after("renewed_at") == pytest.approx(60, abs=0.01)
        lock.renew(ttl=5)
        assert free_after("acquired_at") >= 60
        lock.renew(ttl=100)
        assert free_after("renewed_at") == pytest.approx(130, abs=0.01)


def test_late_release_does_not_shorten_the_hold(observer):
    """The lease was lost at 30 s; what is left at 50 s does not count from 30 s."""
    with lost_at_exit(fenced_lock(NAME, ttl=30, hold_at_least=60, heartbeat=False)) as lock:
        pass_time(observer, 50)
        lock.trust.lose("lost for the test")
    assert free_after("acquired_at") == pytest.approx(60, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_release_sent_again_does_not_shorten_the_hold(kind, observer, monkeypatch):
    """The first was committed, and its response was lost with the connection."""
    plain = store.run
    lost = []

    def run(place, act, *arguments):
        rows = plain(place, act, *arguments)
        if act == "released" and not lost:
            lost.append(act)
            pass_time(observer, 20)  # until the driver gave up
            connection.close()
            raise OperationalError("the connection is lost")
        return rows

    monkeypatch.setattr(store, "run", run)
    with KINDS[kind](ttl=30, hold_at_least=60) as lock:
        pass
    assert lost
    lease = FencedLock.objects.get(slot=lock.place.slot)
    ends = lease.expires_at + lease.lock_delay - lease.acquired_at
    assert ends.total_seconds() == pytest.approx(60, abs=0.01)


def test_forced_release_keeps_the_delay(observer):
    with lost_at_exit(fenced_lock(NAME, ttl=30, hold_at_least=60, heartbeat=False)) as lock:
        assert force_release(NAME)
        assert row().lock_delay.total_seconds() == 30
        lock.trust.lose("lost for the test")
    assert not is_free()


def test_negative_twin_dead_holder_without_hold_at_least(observer):
    die("lock")
    expire(observer)
    assert is_free()
