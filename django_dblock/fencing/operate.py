"""What an operator does to leases: end one by force, remove the rows of those long forgotten."""

from django.db import connections

from django_dblock.conf import conf
from django_dblock.fencing import table
from django_dblock.fencing.names import lease_name
from django_dblock.fencing.table import Place
from django_dblock.keys import KeyPart
from django_dblock.labels import named
from django_dblock.sql import fencing as sql

_MONTH = 30 * 86_400.0
_HOUR = 3_600.0
_BATCH = 1_000


def force_release(*key: KeyPart, using: str | None = None) -> bool:
    """End the lease on a key, whoever has it; return whether there was one.

    Guaranteed when it returns: the old holder can neither renew nor release the lease, and nothing
    that it writes under ``lock.guard()`` or by ``save_fenced()`` is committed any more. Guarded
    transactions that are open are waited for, as long as the session's ``lock_timeout`` lets it.

    Not guaranteed: that the old holder stops. It is told by its next heartbeat or guard. A
    ``lock_delay`` counts from now.

    Args:
        key: the parts of the key, as given to ``fenced_lock``.
        using: the database alias, likewise.

    Raises:
        OpenTransaction, StandbyDatabase, UnsupportedDatabase: see there.
        TypeError, ValueError: the key can't be one; before any SQL.
    """
    wanted = named(key)
    place = Place(wanted, lease_name(wanted, conf.namespace), table.alias_for(using))
    parameters = {"name": place.name, "slot": place.slot}
    return table.run(place, "released", sql.FORCE_RELEASE, parameters) == [(True,)]


def purge_fenced_locks(*, idle: float = _MONTH, using: str | None = None) -> int:
    """Remove leases that nobody has had for ``idle`` seconds; return how many.

    Guaranteed: no token is ever given twice. A row goes only when the server's clock, which every
    new row's token is taken from, is past its token by ``idle``; so that clock would have to be
    set back by more than that. Rows in use are passed over. It goes in small commits.

    Args:
        idle: seconds since the lease ended, at least 3,600; 30 days by default.
        using: the database alias, as in ``fenced_lock``.

    Raises:
        ValueError: ``idle`` is less than an hour.
    """
    if not idle >= _HOUR:
        raise ValueError(f"idle={idle!r}: rows are removed after an hour at the earliest.")
    removed: int = 0
    with connections[table.alias_for(using)].cursor() as cursor:
        cursor.execute(sql.PURGE_TICKETS)
        while True:
            cursor.execute(sql.PURGE, {"idle": float(idle), "batch": _BATCH})
            found: int = cursor.rowcount
            removed += found
            if found < _BATCH:
                return removed
