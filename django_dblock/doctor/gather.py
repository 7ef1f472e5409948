"""Ask one database everything that the examinations need: the same few statements always."""

import time
from collections.abc import Iterable
from typing import Any

from django.db import OperationalError, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.conf import conf
from django_dblock.doctor.facts import Facts, LockTable, Pin, Session, Table
from django_dblock.doctor.lent import is_shared
from django_dblock.sql import doctor as sql

_PROTOCOL_VIOLATION = "08P01"
"""PgBouncer's answer to BEGIN in statement mode."""


def version(connection: BaseDatabaseWrapper) -> str:
    """Return what the server says it is."""
    [[said]] = _rows(connection, sql.VERSION)
    return str(said)


def gather(connection: BaseDatabaseWrapper, said: str) -> Facts:
    """Ask the rest; ``said`` is what it says it is.

    Raises:
        django.db.Error: it can't be asked.
    """
    session = _session(connection)
    settings = dict(_rows(connection, sql.SETTINGS))
    [lock_table] = _rows(connection, sql.LOCK_TABLE)
    tables, elsewhere = _tables(connection)
    pins = tuple(Pin(*row) for row in _rows(connection, sql.PINS))
    isolation, refused = _transaction(connection)
    return Facts(
        alias=connection.alias,
        version=said,
        session=session,
        settings=settings,
        lock_table=LockTable(*lock_table),
        tables=tables,
        elsewhere=elsewhere,
        pins=pins,
        isolation=isolation,
        refused=refused,
        shared=is_shared(connection) if session.pooled and isolation else None,
        server_side_cursors=not connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"),
    )


def _session(connection: BaseDatabaseWrapper) -> Session:
    before = time.time()
    [row] = _rows(connection, sql.SESSION)
    after = time.time()
    in_recovery, backend, role, database, clock, on_socket, sees_all, forbidden = row
    return Session(
        in_recovery=in_recovery,
        backend=backend,
        role=role,
        database=database,
        on_socket=on_socket,
        sees_all=sees_all,
        forbidden=tuple(forbidden),
        clock_ahead=clock - (before + after) / 2,
        pooled=connection.connection.info.backend_pid != backend,
    )


def _tables(connection: BaseDatabaseWrapper) -> tuple[tuple[Table, ...], dict[str, str]]:
    """Our tables; and those of them that have their home in another alias."""
    from django_dblock.models import FencedLock, FencedTicket, IdempotencyKey

    columns: dict[str, list[str]] = {}
    elsewhere: dict[str, str] = {}
    for model in (FencedLock, FencedTicket, IdempotencyKey):
        meta = model._meta  # noqa: SLF001 - Django's
        columns[meta.db_table] = [str(field.column) for field in meta.local_concrete_fields]
        alias = conf.database or router.db_for_write(model)
        if alias != connection.alias:
            elsewhere[meta.db_table] = alias
    rows = _rows(connection, sql.TABLES, {"names": list(columns)})
    return tuple(_table(columns[row[0]], row) for row in rows), elsewhere


def _table(wanted: Iterable[str], row: tuple[Any, ...]) -> Table:
    name, exists, elsewhere, columns, denied, *numbers = row
    missing = tuple(column for column in wanted if column not in columns)
    return Table(name, exists, elsewhere, missing, tuple(denied), *numbers)


def _transaction(connection: BaseDatabaseWrapper) -> tuple[str | None, str]:
    """Begin one: its level; or None, and what was said instead."""
    try:
        with transaction.atomic(using=connection.alias):
            [[isolation]] = _rows(connection, sql.ISOLATION)
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != _PROTOCOL_VIOLATION:
            raise
        connection.close()  # it was hung up
        return None, str(error)
    return isolation, ""


def _rows(
    connection: BaseDatabaseWrapper, statement: str, parameters: dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
