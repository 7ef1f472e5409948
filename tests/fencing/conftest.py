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
    left = list(heartbeat._due)
    for trust in left:
        heartbeat.forget(trust)
    observe.until(_has_ended, "the heartbeat ends")
    assert left == [], "a lease was still watched"


def _has_ended():
    """It waits a moment for another lease; woken, it does not."""
    with heartbeat._changed:
        heartbeat._changed.notify()
        return heartbeat._thread is None
