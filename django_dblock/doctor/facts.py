"""The facts about one database, before they are examined."""

import select
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from django.db import OperationalError, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.conf import conf
from django_dblock.core.connection import positional
from django_dblock.sql import doctor as sql


@dataclass(frozen=True, slots=True)
class Session:
    """Who we are there, and how we got there.

    Attributes:
        in_recovery: whether it is a standby.
        backend: the server process that answers us.
        role: the database role.
        database: the database's name.
        on_socket: whether the server is reached by a Unix socket.
        sees_all: whether other roles' sessions are shown to us whole.
        forbidden: the functions that lock which we may not call.
        clock_ahead: seconds by which the server's clock is ahead of ours.
        pooled: whether the driver was told another server process than the one that answers.
    """

    in_recovery: bool
    backend: int
    role: str
    database: str
    on_socket: bool
    sees_all: bool
    forbidden: tuple[str, ...]
    clock_ahead: float
    pooled: bool

    @property
    def grantee(self) -> str:
        """The role, as SQL has it."""
        return '"' + self.role.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class LockTable:
    """The table of locks that the whole server shares.

    Attributes:
        used: places taken.
        pid: the backend that has the most; None for a prepared transaction.
        most: how many locks it has.
        role: its role.
        application_name: its name.
    """

    used: int
    pid: int | None
    most: int
    role: str | None
    application_name: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """One of our tables.

    Attributes:
        name: as the model has it.
        exists: whether it is found by its name alone.
        elsewhere: the schema where one of that name is, if it is not.
        missing: columns of the model that it does not have.
        denied: what our role may not do with it.
        live: its rows, as counted last.
        dead: dead rows that are not removed yet, as the server estimates them.
        pages: pages of 8 kB, as the server estimates them.
        vacuumed: seconds since it was; None for never.
    """

    name: str
    exists: bool
    elsewhere: str | None
    missing: tuple[str, ...]
    denied: tuple[str, ...]
    live: int
    dead: int
    pages: int
    vacuumed: float | None


@dataclass(frozen=True, slots=True)
class Pin:
    """A session or slot that keeps dead rows from being removed.

    Attributes:
        kind: a transaction's ``backend``, a ``prepared`` transaction or a replication ``slot``.
        name: the backend's pid, the transaction's identifier or the slot's name.
        xids: how many transactions have begun since.
        seconds: for how long; None where hidden, or unknown.
        detail: whose it is, and in which state.
    """

    kind: Literal["backend", "prepared", "slot"]
    name: str
    xids: int
    seconds: float | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it.

    Attributes:
        alias: the database alias.
        version: what ``version()`` says.
        session: who we are there.
        settings: the server's settings as this session has them, in their base units.
        lock_table: how full it is.
        tables: ours, as they are in this database.
        elsewhere: those of them that are read and written through another alias, with that alias,
            where no ``using=`` is given.
        pins: who keeps dead rows, the oldest first.
        isolation: the level of a transaction of this alias; None if none could be begun.
        refused: what was said instead of beginning one.
        shared: whether a pooler lends one server connection to several clients; None if that could
            not be seen.
        server_side_cursors: whether Django uses them on this alias.
    """

    alias: str
    version: str
    session: Session
    settings: Mapping[str, str]
    lock_table: LockTable
    tables: tuple[Table, ...]
    elsewhere: Mapping[str, str]
    pins: tuple[Pin, ...]
    isolation: str | None
    refused: str
    shared: bool | None
    server_side_cursors: bool

    def number(self, setting: str) -> int:
        """Return a setting as a number; 0, which is no limit, where the server doesn't have it."""
        return int(self.settings.get(setting, 0))


# Find out whether a pooler lends one server connection to several clients in turn.


_PATIENCE = 5
"""Seconds; a pool that has no connection left would make a second client wait for minutes."""

_LOOKS = 3


def is_shared(connection: BaseDatabaseWrapper) -> bool | None:
    """Whether two clients were seen on one server connection, or one client on two.

    Then it is lent for a transaction at a time. If neither is seen, it belongs to the session, as
    far as three looks can tell. Opens a second connection for a moment.

    Returns:
        None if the pooler had no server connection for a second client, or ours is in a
        transaction, where it always keeps the same one.
    """
    if connection.in_atomic_block:
        return None
    parameters = {**connection.get_connection_params(), "connect_timeout": _PATIENCE}
    ours, theirs = set(), set()
    try:
        with psycopg.connect(**parameters, autocommit=True) as other:
            for _ in range(_LOOKS):
                with connection.cursor() as cursor:
                    cursor.execute(sql.BACKEND)
                    ours.update(cursor.fetchone())
                theirs.add(_backend(other))
    except (psycopg.OperationalError, TimeoutError):
        return None
    return bool(ours & theirs) or len(ours) > 1 or len(theirs) > 1


def _backend(other: "psycopg.Connection[Any]") -> int:
    """Ask by the driver's own means, which can stop waiting."""
    driver = other.pgconn
    driver.send_query(sql.BACKEND.encode())
    if not select.select([driver.socket], [], [], _PATIENCE)[0]:
        raise TimeoutError
    found = driver.get_result()
    driver.get_result()  # the end of the answer
    if found is None or (value := found.get_value(0, 0)) is None:
        raise psycopg.OperationalError(driver.error_message.decode(errors="replace"))
    return int(value)


# Ask one database everything that the examinations need: the same few statements always.


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
        cursor.execute(*positional(statement, parameters or {}))
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
