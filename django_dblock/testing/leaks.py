"""Nothing is locked any longer: what a test may leave behind."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from django.apps import apps

from django_dblock.core.connection import connection_for, in_transaction
from django_dblock.inspect import AdvisoryLock, FencedLease, advisory_locks, fenced_leases

# Whether the test's transactions let the helpers work, and looking until something is so.
#
# Which databases a test may use is watched by Django and pytest-django on every connection, those
# that the helpers open included.


T = TypeVar("T")

_PAUSE = 0.005
"""Seconds between two looks at the server."""


def refuse_transaction(using: str | None, helper: str, why: str) -> None:
    """Raise RuntimeError where a transaction is open, as TestCase opens one around each test."""
    connection = connection_for(using)
    if in_transaction(connection):
        raise RuntimeError(
            f"{helper}() was called inside a transaction on database {connection.alias!r}: {why}. "
            f"Use django.test.TransactionTestCase instead of TestCase, or "
            f"@pytest.mark.django_db(transaction=True); and call it outside of atomic()."
        )


def until(look: Callable[[], T], satisfied: Callable[[T], bool], within: float) -> T:
    """Look again and again until it satisfies, or the seconds are over; return the last look."""
    deadline = time.monotonic() + within
    while not satisfied(seen := look()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return seen


_MOST = 100
"""Characters of a query that are shown."""

WHY = "locks last until it ends, so they would all be found"


def assert_no_locks(using: str | None = None, *, within: float = 5.0) -> None:
    """Fail if anything is locked in the test database: an advisory lock, or a lease that is held.

    A connection that was closed a moment ago frees its locks a moment later, so it looks again
    until nothing is there, or the time is over. Waiting for a lock counts, too.

    Args:
        using: the database alias, as in :class:`django_dblock.advisory_lock`.
        within: seconds after which what is still locked counts as left.

    Raises:
        AssertionError: what is locked, and by whom.
        RuntimeError: it was called in a transaction, as in a ``TestCase``; or the test may not use
            the database.
    """
    refuse_transaction(using, "assert_no_locks", WHY)
    left = until(partial(_locked, using), lambda found: not found, within)
    if left:
        raise AssertionError("\n".join(["Something is still locked:", *map(_shown, left)]))


def _locked(using: str | None) -> list[AdvisoryLock | FencedLease]:
    found: list[AdvisoryLock | FencedLease] = [*advisory_locks(using)]
    if apps.is_installed("django_dblock"):
        found += [lease for lease in fenced_leases(using) if lease.state == "held"]
    return found


def _shown(lock: AdvisoryLock | FencedLease) -> str:
    if isinstance(lock, FencedLease):
        return f"  lease {lock.name}, token {lock.token}, of {lock.owner}"
    key = lock.name or lock.key_id or f"{lock.classid}/{lock.objid}"
    verb = "held" if lock.granted else "wanted"
    query = " ".join((lock.query or "").split())[:_MOST]
    return f"  lock {key}, {verb} by backend {lock.pid} ({lock.state}): {query}"
