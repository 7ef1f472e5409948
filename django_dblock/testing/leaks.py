"""Nothing is locked any longer: what a test may leave behind."""

from functools import partial

from django.apps import apps

from django_dblock.inspect import AdvisoryLock, FencedLease, advisory_locks, fenced_leases
from django_dblock.testing.database import refuse_transaction, until

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
