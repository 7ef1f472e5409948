"""Held leases, their holders and waiters."""

import pytest

from django_dblock import fenced_lock
from django_dblock.inspect import fenced_leases
from tests.fencing.helpers import NAME, attempt

pytestmark = pytest.mark.django_db(transaction=True)


def test_held_and_delayed_leases_are_listed_with_waiters(statements):
    with fenced_lock("over", ttl=30):
        pass
    with fenced_lock("kept", ttl=30, hold_at_least=60):
        pass
    with fenced_lock(NAME, ttl=30, metadata={"job": "sync"}) as lock:
        waiter = attempt(in_turn=True)
        waiter.once()
        with statements() as sent:
            kept, held = fenced_leases()
        assert len(sent) == 1
        waiter.close()
    assert (held.name, held.slot, held.token) == (NAME, 0, lock.token)
    assert (held.state, held.lock_delay, held.grants) == ("held", 0, 1)
    assert held.metadata == {"job": "sync"}
    assert held.waiting == (held.owner,), "the same thread"
    assert held.age == pytest.approx(held.renewed, abs=1)
    assert held.remaining == pytest.approx(held.free_in, abs=1)
    assert held.free_in <= 30
    assert held.owner.count(":") == 2
    assert (kept.name, kept.state, kept.waiting) == ("kept", "delayed", ())
    assert kept.remaining < 0 < kept.free_in <= kept.lock_delay <= 60


def test_expired_leases_are_optional_and_last(observer):
    with fenced_lock("given back", ttl=30), fenced_lock(NAME, ttl=30):
        pass
    with fenced_lock("zebra", ttl=30):
        assert [lease.name for lease in fenced_leases()] == ["zebra"]
        every = fenced_leases(expired=True)
    assert [(lease.name, lease.state) for lease in every] == [
        ("zebra", "held"), ("given back", "expired"), (NAME, "expired"),
    ]  # fmt: skip
    assert every[1].free_in < 0
    [lease] = fenced_leases(name=NAME, expired=True)
    assert lease.name == NAME
    assert fenced_leases(name="night", expired=True) == []


def test_waiters_are_in_ticket_order_without_dead_ones(observer):
    with fenced_lock(NAME, ttl=30):
        for owner, patience in (("first", 60), ("dead", -1), ("second", 60)):
            observer.execute(
                "INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)"
                " VALUES (%s, 0, %s, clock_timestamp() + %s * interval '1 s')",
                [NAME, owner, patience],
            )
        [lease] = fenced_leases()
    assert lease.waiting == ("first", "second")
