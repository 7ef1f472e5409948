"""Remove the rows of requests whose retention is over."""

from collections.abc import Iterator
from typing import Any

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from django_dblock.databases import in_callers_transaction
from django_dblock.idempotency.store import alias_for
from django_dblock.sql import idempotency_purge as sql

BATCH = 1_000
_SERIALIZATION_FAILURE = "40001"


def purge_idempotency_keys(
    *, batch: int = BATCH, abandoned: bool = True, using: str | None = None
) -> int:
    """Remove the requests whose retention is over; return how many.

    Guaranteed: a request that runs now, by its lease, stays; so does one that waits for a person
    (``on_abandoned="refuse"``). A removed key is as new, as it was from the end of its retention
    on. Any number of purges may run at once, beside all traffic: rows that somebody has locked are
    passed over, and each batch is a commit of its own. Who repeats a key that is just being removed
    waits for that batch, some milliseconds.

    Not guaranteed: that nothing is left. What was locked, or expires meanwhile, goes with the next
    purge. Nor that the file gets smaller: its pages are used again (PostgreSQL manual, 24.1.2).

    Args:
        batch: how many rows go in one commit, from 1.
        abandoned: also requests whose worker was lost and that nobody has repeated in time; False
            leaves them for a person to look at.
        using: the database alias, as in ``idempotent``.

    Raises:
        ValueError: ``batch`` is less than 1; before any SQL.
        TransactionManagementError: a transaction is open; likewise.
        UnsupportedDatabase: the alias is not PostgreSQL's.

    Source: PostgreSQL manual, "SELECT, The Locking Clause" (SKIP LOCKED), 24.1.2 "Recovering Disk
    Space".
    """
    return sum(purge_in_batches(batch=batch, abandoned=abandoned, using=using))


def purge_in_batches(
    *, batch: int = BATCH, abandoned: bool = True, using: str | None = None
) -> Iterator[int]:
    """Do the same one commit at a time; yield how many rows went in each.

    Guarantees and arguments are those of :func:`django_dblock.purge_idempotency_keys`. Whoever
    takes no more batches ends the purge; what is removed by then is committed.

    Raises:
        ValueError, TransactionManagementError, UnsupportedDatabase: as
            :func:`django_dblock.purge_idempotency_keys`.
    """
    if batch < 1:
        raise ValueError(f"batch={batch!r}: at least 1 row goes in a commit.")
    connection = connections[alias_for(using)]
    _refuse_transaction(connection)
    parameters = {"batch": batch, "abandoned": abandoned, "now": _now(connection)}
    removed, latest = batch, "-infinity"
    while removed == batch:
        _refuse_transaction(connection)  # whoever takes the batches may have begun one
        removed, latest = _remove(connection, {**parameters, "after": latest})
        yield removed


def count_expired_idempotency_keys(*, abandoned: bool = True, using: str | None = None) -> int:
    """Return how many requests a purge would remove now; it removes nothing.

    Not guaranteed: that a purge after it removes as many.

    Args:
        abandoned: as of :func:`django_dblock.purge_idempotency_keys`.
        using: likewise.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL's.
    """
    connection = connections[alias_for(using)]
    with connection.cursor() as cursor:
        cursor.execute(sql.COUNT_EXPIRED, {"abandoned": abandoned, "now": _now(connection)})
        [count] = cursor.fetchone()
        return int(count)


def _now(connection: BaseDatabaseWrapper) -> str:
    with connection.cursor() as cursor:
        cursor.execute(sql.CLOCK)
        [now] = cursor.fetchone()
        return str(now)


def _remove(connection: BaseDatabaseWrapper, parameters: dict[str, Any]) -> tuple[int, str]:
    """Remove one batch; return how many rows went, and when the last one of them expired."""
    while True:
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql.PURGE, parameters)
                removed, latest, _ = cursor.fetchone()
                return removed, latest
        except OperationalError as error:
            # Above READ COMMITTED, this is how meeting another purge looks: look again.
            if getattr(error.__cause__, "sqlstate", None) != _SERIALIZATION_FAILURE:
                raise


def _refuse_transaction(connection: BaseDatabaseWrapper) -> None:
    if in_callers_transaction(connection):
        raise TransactionManagementError(
            f"Idempotency keys can't be purged inside an open transaction on database "
            f"{connection.alias!r}: all the rows would stay locked until its end. Purge outside "
            f"transaction.atomic(); ATOMIC_REQUESTS opens one around each view."
        )
