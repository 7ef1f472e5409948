"""What an operator does with leases: end a lease by force, remove the rows of old leases."""

from collections.abc import Iterator

from django.db import connections

from django_dblock.conf import conf
from django_dblock.core.application_name import named
from django_dblock.core.connection import drop_if_dead, fetch, positional
from django_dblock.core.logging import audit_log, doer
from django_dblock.fencing import store
from django_dblock.fencing.lease_name import lease_name
from django_dblock.fencing.store import Place
from django_dblock.keys import KeyPart
from django_dblock.sql import fencing as sql

MONTH = 30 * 86_400.0
HOUR = 3_600.0
BATCH = 1_000


def force_release(*key: KeyPart, by: str | None = None, using: str | None = None) -> bool:
    """End the lease on a key, whoever holds it; return whether a lease was held.

    Guaranteed when it returns: the old holder can neither renew nor release the lease, and none
    of its writes under ``lock.guard()`` or by ``save_fenced()`` is committed any more. The call
    waits for open guarded transactions, as long as the session's ``lock_timeout`` allows.

    Not guaranteed: that the old holder stops at once. The old holder learns of the end at its next
    heartbeat or guard. A ``lock_delay`` counts from now, and so does the part of ``hold_at_least``
    that is longer than the ttl.

    Each lease that was ended is logged as a warning by ``django_dblock.audit``.

    Args:
        key: the parts of the key, as given to ``fenced_lock``.
        by: the user who does this, for the audit log; the database role if not given.
        using: the database alias, as given to ``fenced_lock``.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
        UnsupportedDatabase: the database is not PostgreSQL.
        django.db.OperationalError: a guarded transaction was open until the session's
            ``lock_timeout`` fired; nothing was ended.
        TypeError, ValueError: a part of the key is not valid; before any SQL.
    """
    wanted = named(key)
    place = Place(wanted, lease_name(wanted, conf.namespace), store.alias_for(using))
    released = _force_release(place, None, None)
    if released:
        who = doer(by, place.using)
        audit_log.warning(
            "dblock: %s released %s on %r by force: its holder is fenced off",
            who, place.name, place.using,
            extra={"by": who, "lock": place.name, "slot": place.slot, "using": place.using},
        )  # fmt: skip
    return released


def force_release_grant(
    name: str, slot: int, token: int, *, patience: float | None = None, using: str | None = None
) -> bool:
    """End one grant that was seen in the table, but no later grant; return whether it was held.

    The guarantees are those of :func:`force_release`. The caller writes the audit log.

    Args:
        name: the lease's name in the table.
        slot: the lease's slot in the table.
        token: the fencing token of the grant.
        patience: seconds to wait for guarded transactions that are open; if not given, as long as
            the session's ``lock_timeout`` allows.
        using: the database alias, as in ``fenced_lock``.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
        UnsupportedDatabase: the database is not PostgreSQL.
        django.db.OperationalError: ``patience`` ran out; nothing was ended.
    """
    place = Place(named((name,)), name, store.alias_for(using), slot)
    return _force_release(place, token, patience)


def _force_release(place: Place, token: int | None, patience: float | None) -> bool:
    parameters = {
        "name": place.name,
        "slot": place.slot,
        "token": token,
        "ticket": None,
        "patience": None if patience is None else f"{max(round(patience * 1000), 1)}ms",
    }
    rows = store.run(place, "released", sql.FORCE_RELEASE, parameters)
    return any(held for held, *_ in rows)


def purge_fenced_locks(*, idle: float = MONTH, using: str | None = None) -> int:
    """Remove the rows of leases that ended ``idle`` seconds ago or earlier; return their number.

    Guaranteed: no token is ever granted twice, unless the server's clock is set back by more than
    ``idle``. The token of a new row comes from the server's clock, and a row is removed only when
    that clock is past the row's token by ``idle``. Rows in use are passed over.

    The rows are removed in small commits. Call the function outside a transaction: inside one, all
    rows stay locked until the commit removes them.

    Args:
        idle: seconds since the lease ended, at least 3,600; 30 days by default.
        using: the database alias, as in ``fenced_lock``.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
        UnsupportedDatabase: the database is not PostgreSQL.
    """
    return sum(purge_in_batches(idle=idle, batch=BATCH, using=using))


def purge_in_batches(*, idle: float, batch: int, using: str | None = None) -> Iterator[int]:
    """Remove the same rows, at most ``batch`` in each commit; yield the number of each commit.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
    """
    _refuse_early(idle)
    connection = connections[store.alias_for(using)]
    drop_if_dead(connection)
    with connection.cursor() as cursor:
        cursor.execute(sql.PURGE_TICKETS)
        found = batch
        while found == batch:
            cursor.execute(*positional(sql.PURGE, {"idle": float(idle), "batch": batch}))
            found = cursor.rowcount
            yield found


def count_idle_fenced_locks(*, idle: float = MONTH, using: str | None = None) -> int:
    """Return the number of leases that a purge would remove now; remove nothing.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
    """
    _refuse_early(idle)
    connection = connections[store.alias_for(using)]
    [[count]] = fetch(connection, sql.COUNT_IDLE, {"idle": float(idle)})
    return int(count)


def _refuse_early(idle: float) -> None:
    if not idle >= HOUR:
        raise ValueError(f"idle={idle!r}: rows are removed after an hour at the earliest.")
