"""Which leases are held, by whom, and who waits."""

import pytest

from django_dblock import fenced_lock
from django_dblock.inspect import fenced_leases
from tests.fencing.helpers import NAME
from tests.fencing.test_waiting import attempt

pytestmark = pytest.mark.django_db(transaction=True)


def test_held_and_kept_leases_and_who_waits(statements):
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
    assert held.held
    assert held.metadata == {"job": "sync"}
    assert held.waiting == held.grants == 1
    assert held.age == pytest.approx(held.renewed, abs=1)
    assert held.remaining == pytest.approx(held.free_in, abs=1)
    assert held.free_in <= 30
    assert held.owner.count(":") == 2
    assert (kept.name, kept.held, kept.waiting) == ("kept", False, 0)
    assert kept.remaining < 0 < kept.free_in <= 60
