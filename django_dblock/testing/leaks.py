"""``assert_no_locks``: fail if a test has left a lock."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from django.apps import apps
from django.db import router

from django_dblock.core.clock import monotonic
from django_dblock.core.connection import alias_of, connection_for, in_transaction
from django_dblock.inspect import AdvisoryLock, FencedLease, advisory_locks, fenced_leases

T = TypeVar("T")

_PAUSE = 0.005
"""Seconds between two looks at the server."""


def refuse_transaction(using: str | None, helper: str, why: str) -> None:
    """Raise RuntimeError if a transaction is open; TestCase opens one around each test."""
    connection = connection_for(using)
    if in_transaction(connection):
        raise RuntimeError(
            f"{helper}() was called inside a transaction on database {connection.alias!r}: {why}. "
            f"Use django.test.TransactionTestCase instead of TestCase, or "
            f"@pytest.mark.django_db(transaction=True); and call it outside of atomic()."
        )


def until(look: Callable[[], T], satisfied: Callable[[T], bool], within: float) -> T:
    """Call ``look`` until its result satisfies or the time has passed; return the last result."""
    deadline = monotonic() + within
    while not satisfied(seen := look()) and monotonic() < deadline:
        time.sleep(_PAUSE)
    return seen


_MOST = 100
"""How many characters of a query are shown."""

WHY = "locks last until it ends, so they would all be found"


def assert_no_locks(using: str | None = None, *, within: float = 5.0) -> None:
    """Fail if the test database has an advisory lock, held or awaited, or a lease that is held.

    The server frees the locks of a closed connection a moment later. So the check is repeated until
    no lock is left or the time has passed.

    Args:
        using: the database alias, as in :class:`django_dblock.advisory_lock`.
        within: seconds to repeat the check.

    Raises:
        AssertionError: a lock is left; the message names each lock and its holder.
        RuntimeError: called in a transaction, as in a ``TestCase``; or the test may not use the
            database.
    """
    refuse_transaction(using, "assert_no_locks", WHY)
    left = until(partial(_locked, using), lambda found: not found, within)
    if left:
        raise AssertionError("\n".join(["Something is still locked:", *map(_shown, left)]))


def _locked(using: str | None) -> list[AdvisoryLock | FencedLease]:
    found: list[AdvisoryLock | FencedLease] = [*advisory_locks(using)]
    if apps.is_installed("django_dblock") and _has_leases(using):
        found += [lease for lease in fenced_leases(using) if lease.state == "held"]
    return found


def _has_leases(using: str | None) -> bool:
    """Tell whether the routers keep the table of the leases in this database."""
    from django_dblock.models import FencedLock  # only a project with the app has it

    return router.allow_migrate_model(alias_of(using, FencedLock), FencedLock)


def _shown(lock: AdvisoryLock | FencedLease) -> str:
    if isinstance(lock, FencedLease):
        return f"  lease {lock.title}, token {lock.token}, of {lock.owner}"
    key = lock.name or lock.key_id or f"{lock.classid}/{lock.objid}"
    verb = "held" if lock.granted else "wanted"
    query = " ".join((lock.query or "").split())[:_MOST]
    return f"  lock {key}, {verb} by backend {lock.pid} ({lock.state}): {query}"
