"""Advisory locks that somebody else holds, waits for, or is brought into a deadlock by."""

import threading
from contextlib import ExitStack, contextmanager

import pytest
from django.db import transaction

from django_dblock import LockDeadlock, advisory_lock
from django_dblock.keys import encode, key_id
from tests.helpers import observe
from tests.helpers.processes import process


def number(*key):
    return key_id(encode(key))


def hold(rival, *key, shared=False):
    """Let somebody else's transaction lock the key."""
    rival.execute("BEGIN")
    form = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    rival.execute(f"SELECT {form}(%s)", [number(*key)])


def deadlock(rival, observer, **options):
    """Bring us and somebody else into one, which the server ends in our statement."""
    hold(rival, "b")
    with transaction.atomic(), advisory_lock("a"):
        waiting = threading.Thread(
            target=lambda: rival.execute(
                f"SET LOCAL deadlock_timeout = '1h'; SELECT pg_advisory_xact_lock({number('a')})"
            )
        )
        waiting.start()
        observe.until_blocked(observer)
        with pytest.raises(LockDeadlock), advisory_lock("b", **options):
            pass
    waiting.join()
    rival.execute("ROLLBACK")


def held(observer):
    """The numbers locked in the test database."""
    rows = observer.execute(
        "SELECT classid::bigint, objid::bigint, mode FROM pg_locks WHERE locktype = 'advisory'"
        " AND granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchall()
    return {(classid, objid): mode for classid, objid, mode in rows}


def wait(_channel):
    with advisory_lock("inventory", "sku-1", timeout=30) as lock:
        return lock.waited


@contextmanager
def waiter_behind(observer):
    """Hold the lock while another process really waits for it."""
    with ExitStack() as stack:
        with advisory_lock("inventory", "sku-1"):
            waiter = stack.enter_context(process(wait))
            observe.until_blocked(observer)
            yield
        assert waiter.receive() > 0
