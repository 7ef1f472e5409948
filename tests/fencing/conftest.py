"""After each test nothing may be renewed any more, and no heartbeat may beat."""

import pytest

from django_dblock.fencing import store
from django_dblock.fencing.heartbeat import heartbeat
from tests.helpers import observe


@pytest.fixture(autouse=True)
def _no_heartbeat_is_left():
    store._granted.clear()  # a hint of tests before this one, whose rows are gone
    store._awaited.clear()
    yield
    left = [trust for one in heartbeat._by_alias.values() for trust in one._due]
    for trust in left:
        heartbeat.forget(trust)
    observe.until(_has_ended, "the heartbeat ends")
    assert left == [], "a lease was still watched"


def _has_ended():
    """It waits a moment for another lease; woken, it does not."""
    for one in heartbeat._by_alias.values():
        with one._changed:
            one._changed.notify()
            if one._thread is not None:
                return False
    return True
