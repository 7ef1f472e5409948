"""Looking at leases from outside, and ending them without their holders' knowledge."""

import threading
from contextlib import ExitStack, contextmanager

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections

from django_dblock import FencedLock, LockLost, fenced_lock
from django_dblock.core.application_name import named
from django_dblock.core.simple_query import Hints
from django_dblock.fencing.acquire import Attempt
from django_dblock.fencing.deadline import now
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.store import Place, Wish
from tests.helpers import observe

NAME = "nightly-sync"

SEEN = [
    pytest.param(True, id="take"),
    pytest.param(None, id="take-or-insert"),
    pytest.param(False, id="acquire"),
]
"""Whether the last attempt was granted; by that is decided what an attempt sends first."""


class Always(Hints):
    """A ``store._granted`` with this answer for each name, whatever the last attempt was."""

    def __init__(self, seen):
        self._seen = seen

    def get(self, key):
        return self._seen


@contextmanager
def lost_at_exit(block):
    """Enter a block that ends with LockLost; a LockLost that its body raises fails the test."""
    with ExitStack() as stack:
        yield stack.enter_context(block)
        with pytest.raises(LockLost):
            stack.pop_all().close()


def row(name=NAME):
    return FencedLock.objects.get(name=name)


def expire(observer, name=NAME):
    """What time does: the lease has run out, and its holder does not know."""
    observer.execute(
        "UPDATE django_dblock_fencedlock SET expires_at = clock_timestamp() WHERE name = %s", [name]
    )


def until_expired(observer, name=NAME):
    """Wait for the server's clock."""
    observe.until(lambda: is_expired(observer, name), f"{name} expires")


def is_expired(observer, name=NAME):
    return observer.execute(
        "SELECT expires_at <= clock_timestamp() FROM django_dblock_fencedlock WHERE name = %s",
        [name],
    ).fetchone()[0]


def renewed_at(observer, name=NAME):
    return observer.execute(
        "SELECT renewed_at FROM django_dblock_fencedlock WHERE name = %s", [name]
    ).fetchone()[0]


def until_renewed(observer, name=NAME):
    before = renewed_at(observer, name)
    observe.until(lambda: renewed_at(observer, name) > before, f"{name} is renewed")


@contextmanager
def wal_written(observer):
    """Count the bytes of WAL that the cluster writes meanwhile."""
    lsn = "SELECT pg_current_wal_insert_lsn()"
    [before] = observer.execute(lsn).fetchone()
    found = []
    yield found
    [bytes_] = observer.execute(
        "SELECT (pg_current_wal_insert_lsn() - %s::pg_lsn)::bigint", [before]
    ).fetchone()
    found.append(bytes_)


def updates():
    """(all, heap-only) updates of the lock table so far."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
            " WHERE relname = 'django_dblock_fencedlock'"
        )
        return cursor.fetchone()


def beat_now():
    """Make every lease of this process due."""
    for one in heartbeat._by_alias.values():
        with one._changed:
            for trust in one._due:
                one._due[trust] = now()
            one._changed.notify()


def run(coroutine):
    """Run it in a loop of its own, and close the connections of its threads."""

    async def closing():
        try:
            return await coroutine
        finally:
            await sync_to_async(connections.close_all)()

    return async_to_sync(closing)()


def in_a_thread(work):
    """Run it to its end in a thread; return its result, or the error that it raised."""
    found = []

    def run_and_close():
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - handed over
            found.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run_and_close)
    thread.start()
    thread.join()
    return found[0]


def attempt(timeout=60, *, in_turn=False):
    return Attempt(Place(named((NAME,)), NAME, "default"), Wish(30, 0, "{}", in_turn), timeout)


def count_up(_number, times):
    for _ in range(times):
        with fenced_lock("counted", ttl=30, timeout=60):
            FencedLock.objects.get_or_create(
                name="count",
                defaults={
                    "token": 1, "owner": "", "acquired_at": "2000-01-01T00:00Z",
                    "renewed_at": "2000-01-01T00:00Z", "expires_at": "2000-01-01T00:00Z",
                    "lock_delay": "0", "grants": 0, "metadata": {"value": 0},
                },
            )  # fmt: skip
            found = row("count")
            found.metadata = {"value": found.metadata["value"] + 1}
            found.save()


def started(work):
    """Begin it in a thread, which closes its connections at the end; return the thread."""

    def run_and_close():
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run_and_close)
    thread.start()
    return thread
