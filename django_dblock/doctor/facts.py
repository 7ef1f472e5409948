"""The facts about one database, before they are examined."""

import select
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import psycopg
from django.db import OperationalError, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.errors import LockNotAvailable, QueryCanceled

from django_dblock.conf import conf
from django_dblock.core.connection import caused_by, dedicated, fetch
from django_dblock.sql import doctor as sql


@dataclass(frozen=True, slots=True)
class Session:
    """The doctor's session: its server, its role, and how it is connected.

    Attributes:
        in_recovery: whether the server is a standby.
        backend: the process id of the session's backend.
        role: the database role.
        login_role: the role that signed in, whose settings the server has applied; it differs from
            ``role`` after ``SET ROLE``, as by ``assume_role`` in the alias's OPTIONS.
        database: the database's name.
        on_socket: whether the server is reached by a Unix socket.
        sees_all: whether the role sees all details of other roles' sessions.
        forbidden: the lock functions that the role may not call.
        clock_ahead: seconds by which the server's clock is ahead of this machine's.
        pooled: whether the driver was given another process id than ``backend``, as poolers do.
    """

    in_recovery: bool
    backend: int
    role: str
    login_role: str
    database: str
    on_socket: bool
    sees_all: bool
    forbidden: tuple[str, ...]
    clock_ahead: float
    pooled: bool

    @property
    def grantee(self) -> str:
        """The role, quoted for SQL."""
        return _quoted(self.role)

    @property
    def login(self) -> str:
        """The role that signed in, quoted for SQL; ``ALTER ROLE … SET`` works on this one."""
        return _quoted(self.login_role)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class LockTable:
    """The table of locks that the whole server shares.

    Attributes:
        used: the number of places that are taken.
        pid: the backend that holds the most locks; None for a prepared transaction.
        most: the number of locks that this backend holds.
        role: the role of this backend.
        application_name: the ``application_name`` of this backend.
    """

    used: int
    pid: int | None
    most: int
    role: str | None
    application_name: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """One of the package's tables.

    Attributes:
        name: the table's name in the model.
        exists: whether the name without a schema leads to the table.
        elsewhere: the schema with a table of this name, if ``exists`` is false.
        missing: the model's columns that the table lacks.
        denied: the privileges that the role lacks on the table.
        filtered: whether row-level security applies to the role on the table.
        live: live rows, as the server estimates them.
        dead: dead rows that are not removed yet, as the server estimates them.
        pages: pages of 8 kB, as the server estimates them.
        vacuumed: seconds since the last vacuum; None if the table was never vacuumed.
    """

    name: str
    exists: bool
    elsewhere: str | None
    missing: tuple[str, ...]
    denied: tuple[str, ...]
    filtered: bool
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
        xids: how many transactions have begun since the pin was set.
        seconds: the age of the pin in seconds; None if it is hidden or unknown.
        detail: the role, the ``application_name`` and the state.
    """

    kind: Literal["backend", "prepared", "slot"]
    name: str
    xids: int
    seconds: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Unattended:
    """Work that leases coordinate and that nobody does.

    Attributes:
        what: ``partitions`` without an owner beside live workers; or the last ``leader`` or
            ``worker`` of a name has gone.
        key: the key of the lease.
        seconds: for how long.
        unowned: how many partitions have no owner.
        parts: how many partitions there are.
        workers: how many workers live.
        total: how many such keys there are; not all are shown.
    """

    what: Literal["partitions", "leader", "worker"]
    key: str
    seconds: float
    unowned: int
    parts: int
    workers: int
    total: int


@dataclass(frozen=True, slots=True)
class StalledLatch:
    """A latch that somebody waits for, and of which no part has been done for an hour.

    Attributes:
        name: the latch's name.
        waiting: how many wait.
        parts: how many parts are done.
        seconds: since the latest part.
        total: how many such latches there are; not all are shown.
    """

    name: str
    waiting: int
    parts: int
    seconds: float
    total: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job of ``once_per``.

    Attributes:
        what: ``stuck``: a run has ended without a result; ``latest``: the latest finished run.
        name: the job's name and its period; of a stuck run also which one.
        seconds: since the run ended.
        total: how many stuck runs there are; not all are shown.
    """

    what: Literal["stuck", "latest"]
    name: str
    seconds: float
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts about one database.

    Attributes:
        alias: the database alias.
        version: the result of ``version()``.
        session: the doctor's session.
        settings: the server's settings in this session, in their base units.
        lock_table: how full the lock table is.
        tables: the package's tables in this database.
        elsewhere: the tables that are read and written through another alias if no ``using=`` is
            given, with that alias.
        pins: what keeps dead rows from being removed, the oldest first.
        isolation: the isolation level of this alias's transactions; None if no transaction could
            be begun.
        refused: the server's error when no transaction could be begun; else empty.
        shared: whether a pooler lends one server connection to several clients; None if that could
            not be seen.
        server_side_cursors: whether Django uses server-side cursors on this alias.
        unattended: work that nobody does; None if the leases could not be read at once.
        latches: latches of which no part comes; None if the parts could not be read at once.
        jobs: the jobs of ``once_per``; None if the requests could not be read at once.
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
    unattended: tuple[Unattended, ...] | None
    latches: tuple[StalledLatch, ...] | None
    jobs: tuple[Job, ...] | None

    def number(self, setting: str) -> int:
        """Return a setting as a number; 0 (no limit) if the server lacks the setting."""
        return int(self.settings.get(setting, 0))


# Find out whether a pooler lends one server connection to several clients in turn.


_PATIENCE = 5
"""Seconds; a pool without a free connection would make a second client wait for minutes."""

_LOOKS = 3


def is_shared(connection: BaseDatabaseWrapper) -> bool | None:
    """Return whether a pooler lends a server connection for one transaction at a time.

    That is so if two clients were seen on one server connection, or one client on two. If neither
    is seen in three samples, the pooler probably lends a connection for a session. The function
    opens a second connection for a moment.

    Returns:
        None if the pooler had no server connection for a second client; or if this client is in a
        transaction, during which a pooler always keeps the same server connection.
    """
    if connection.in_atomic_block:
        return None
    own = dedicated(connection.alias).get_connection_params()  # only what libpq knows
    parameters = {**own, "connect_timeout": _PATIENCE}
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
    """Return the process id of a connection's backend, waiting ``_PATIENCE`` seconds at most.

    Raises:
        TimeoutError: the server did not respond in time.
        psycopg.OperationalError: the connection was closed, or the statement failed.
    """
    driver = other.pgconn  # libpq's own calls: psycopg's execute() has no timeout
    driver.send_query(sql.BACKEND.encode())
    if not select.select([driver.socket], [], [], _PATIENCE)[0]:
        raise TimeoutError
    result = driver.get_result()
    driver.get_result()  # None, the end of the results
    if result is None or (value := result.get_value(0, 0)) is None:
        raise psycopg.OperationalError(driver.error_message.decode(errors="replace"))
    return int(value)


# Read everything that the examinations need from one database, always by the same few statements.


_PROTOCOL_VIOLATION = "08P01"
"""The SQLSTATE of PgBouncer's error for BEGIN in statement mode."""


def version(connection: BaseDatabaseWrapper) -> str:
    """Return the result of the server's ``version()``."""
    [[said]] = fetch(connection, sql.VERSION, {})
    return str(said)


def gather(connection: BaseDatabaseWrapper, said: str) -> Facts:
    """Read all facts about the connection's database.

    Args:
        connection: the connection to the database.
        said: the result of :func:`version`.

    Raises:
        django.db.Error: a statement failed, or the server can't be reached.
    """
    session = _session(connection)
    settings = dict(fetch(connection, sql.SETTINGS, {}))
    [lock_table] = fetch(connection, sql.LOCK_TABLE, {})
    tables, elsewhere = _tables(connection)
    readable = frozenset(
        table.name
        for table in tables
        if table.exists
        and not table.missing
        and "SELECT" not in table.denied
        and not table.filtered  # its policies may hide rows, or fail
        and table.name not in elsewhere
    )
    pins = tuple(Pin(*row) for row in fetch(connection, sql.PINS, {}))
    isolation, refused = _transaction(connection)
    coordinated = _coordinated(connection, readable) if isolation else _Coordinated()
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
        **coordinated._asdict(),
    )


class _Coordinated(NamedTuple):
    """The facts that are read from the rows of the tables."""

    unattended: tuple[Unattended, ...] | None = None
    latches: tuple[StalledLatch, ...] | None = None
    jobs: tuple[Job, ...] | None = None


def _coordinated(connection: BaseDatabaseWrapper, readable: frozenset[str]) -> _Coordinated:
    """Read the tables themselves, unless that means to wait for somebody who has locked them."""
    found = _Coordinated()
    try:
        with transaction.atomic(using=connection.alias):
            fetch(connection, sql.PATIENCE, {})
            if {"django_dblock_fencedlock", "django_dblock_fencedticket"} <= readable:
                rows = fetch(connection, sql.UNATTENDED, {})
                found = found._replace(unattended=tuple(Unattended(*row) for row in rows))
            if {"django_dblock_latchpart", "django_dblock_fencedticket"} <= readable:
                rows = fetch(connection, sql.STALLED_LATCHES, {"name": None, "namespace": None})
                found = found._replace(latches=tuple(StalledLatch(*row) for row in rows))
            if "django_dblock_idempotencykey" in readable:
                rows = fetch(connection, sql.JOBS, {})
                found = found._replace(jobs=tuple(Job(*row) for row in rows))
            transaction.set_rollback(True, using=connection.alias)  # the limits end with it
    except OperationalError as error:
        if not caused_by(error, LockNotAvailable, QueryCanceled):
            raise
    return found


def _session(connection: BaseDatabaseWrapper) -> Session:
    before = time.time()
    [row] = fetch(connection, sql.SESSION, {})
    after = time.time()
    in_recovery, backend, role, login_role, database, clock, on_socket, sees_all, forbidden = row
    return Session(
        in_recovery=in_recovery,
        backend=backend,
        role=role,
        login_role=login_role,
        database=database,
        on_socket=on_socket,
        sees_all=sees_all,
        forbidden=tuple(forbidden),
        clock_ahead=clock - (before + after) / 2,
        pooled=connection.connection.info.backend_pid != backend,
    )


def _tables(connection: BaseDatabaseWrapper) -> tuple[tuple[Table, ...], dict[str, str]]:
    """Return the package's tables, and the alias of each table that belongs to another alias."""
    from django_dblock.models import FencedLock, FencedTicket, IdempotencyKey, LatchPart

    columns: dict[str, list[str]] = {}
    elsewhere: dict[str, str] = {}
    for model in (FencedLock, FencedTicket, IdempotencyKey, LatchPart):
        meta = model._meta  # noqa: SLF001 - Django's
        columns[meta.db_table] = [str(field.column) for field in meta.local_concrete_fields]
        alias = conf.database or router.db_for_write(model)
        if alias != connection.alias:
            elsewhere[meta.db_table] = alias
    rows = fetch(connection, sql.TABLES, {"names": list(columns)})
    return tuple(_table(columns[row[0]], row) for row in rows), elsewhere


def _table(expected: Iterable[str], row: tuple[Any, ...]) -> Table:
    name, exists, elsewhere, columns, denied, *numbers = row
    missing = tuple(column for column in expected if column not in columns)
    if name == "django_dblock_latchpart":  # its rows are written once
        denied = [privilege for privilege in denied if privilege != "UPDATE"]
    return Table(name, exists, elsewhere, missing, tuple(denied), *numbers)


def _transaction(connection: BaseDatabaseWrapper) -> tuple[str | None, str]:
    """Return the isolation level of a new transaction and ""; or None and the server's error."""
    try:
        with transaction.atomic(using=connection.alias):
            [[isolation]] = fetch(connection, sql.ISOLATION, {})
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != _PROTOCOL_VIOLATION:
            raise
        connection.close()  # the pooler has closed its side
        return None, str(error)
    return isolation, ""
