"""Row and table locks with a deadline, and a locked transaction for async code."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, TypeVar

import psycopg
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import Error, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet
from django.db.transaction import TransactionManagementError

from django_dblock.advisory.lock import advisory_lock
from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import caused_by, connection_for, fetch, in_transaction
from django_dblock.core.decorators import refuse_unfinished, refuse_what_runs_later
from django_dblock.exceptions import LockDeadlock, LockTimeout
from django_dblock.keys import Key, KeyPart
from django_dblock.sql import advisory as sql

M = TypeVar("M", bound=Model)
R = TypeVar("R")

TABLE_MODES = (
    "access share",
    "row share",
    "row exclusive",
    "share update exclusive",
    "share",
    "share row exclusive",
    "exclusive",
    "access exclusive",
)


def lock_rows(
    queryset: QuerySet[M],
    *,
    timeout: float | EllipsisType | None = ...,
    of: Sequence[str] = (),
    no_key: bool = False,
) -> list[M]:
    """Lock the queryset's rows until the transaction ends; return the instances.

    Guaranteed: the rows are read and locked by one ``SELECT … FOR UPDATE`` in the order of their
    primary keys, so two calls for the same rows can't deadlock with each other. No other
    transaction changes, deletes or locks the rows until this transaction ends, or the savepoint in
    which they were locked is rolled back. After a timeout the transaction is usable.

    Not guaranteed: that rows which are inserted later are locked; that the whole call ends within
    ``timeout``, because the server applies the timeout to each row separately.

    Args:
        queryset: the rows; it may filter, but not slice. The queryset's own order is replaced.
        timeout: seconds to wait for a row, ``DBLOCK_ADVISORY_TIMEOUT`` (10) by default; 0 does not
            wait; None waits as long as the server's ``lock_timeout`` allows.
        of: the relations whose rows are locked, as in ``select_for_update``.
        no_key: lock with ``FOR NO KEY UPDATE``: other transactions may insert rows that refer to
            the locked rows.

    Raises:
        TransactionManagementError: no transaction is open, so the locks would end at once.
        LockTimeout: another transaction held a row until the timeout. No row is locked.
        LockDeadlock: the server ended the wait because of a deadlock. No row is locked.
        django.db.OperationalError: above READ COMMITTED, a row has changed since the transaction's
            snapshot (SQLSTATE 40001). Run the whole transaction again.
        ValueError: the timeout is not a number of seconds.
        TypeError: the queryset is sliced.
        UnsupportedDatabase: the queryset's database is not PostgreSQL.

    Source: PostgreSQL manual, 13.3.2 "Row-Level Locks".
    """
    name = queryset.model._meta.label_lower  # noqa: SLF001 - Django's documented API
    # The alias in which Django would lock: that of using(), or the router's, which gets the hints
    # of a related manager.
    alias = queryset.select_for_update().db
    connection = connection_for(alias)
    with _waiting(connection, "lock_rows", (name, "rows"), timeout) as nowait:
        rows = queryset.using(alias).order_by("pk")
        return list(rows.select_for_update(nowait=nowait, of=of, no_key=no_key))


def lock_table(
    model: type[Model],
    *,
    mode: str = "share row exclusive",
    timeout: float | EllipsisType | None = ...,
    using: str | None = None,
) -> None:
    """Lock a model's table until the transaction ends, for migrations and imports.

    Guaranteed: no other transaction holds a conflicting lock of the table until this transaction
    ends. After a timeout the transaction is usable.

    Not guaranteed: anything about the tables of parent or child models. While this call waits,
    other transactions queue behind it, also for modes that don't conflict with the present holders.
    So keep the timeout short.

    Args:
        model: the model.
        mode: the server's name of the mode, in lower case. "share row exclusive" keeps writers out
            and lets readers in; "access exclusive" keeps writers and readers out.
        timeout: seconds to wait, ``DBLOCK_ADVISORY_TIMEOUT`` (10) by default; 0 does not wait; None
            waits as long as the server's ``lock_timeout`` allows.
        using: the database alias; by default where the router writes the model.

    Raises:
        TransactionManagementError: no transaction is open, so the lock would end at once.
        LockTimeout: another transaction held a conflicting lock until the timeout. Nothing is
            locked.
        LockDeadlock: the server ended the wait because of a deadlock. Nothing is locked.
        ValueError: the mode is not one of PostgreSQL's, or the timeout is not a number of seconds.
        UnsupportedDatabase: the database is not PostgreSQL.

    Source: PostgreSQL manual, 13.3.1 "Table-Level Locks".
    """
    if mode not in TABLE_MODES:
        raise ValueError(f"mode={mode!r} is none of {', '.join(TABLE_MODES)}.")
    meta = model._meta  # noqa: SLF001 - Django's documented API
    connection = connection_for(using or router.db_for_write(model))
    with _waiting(connection, "lock_table", (meta.label_lower, "table"), timeout) as nowait:
        # A name and a mode can't be parameters. The name is quoted, the mode is in TABLE_MODES.
        table = connection.ops.quote_name(meta.db_table)
        statement = f"LOCK TABLE {table} IN {mode.upper()} MODE{' NOWAIT' if nowait else ''}"
        fetch(connection, statement, {})


@contextmanager
def _waiting(
    connection: BaseDatabaseWrapper,
    function: str,
    key: Key,
    timeout: float | EllipsisType | None,
) -> Iterator[bool]:
    """Set ``lock_timeout`` for a block under a savepoint; yield whether to use NOWAIT.

    Raises:
        ValueError: the timeout is not a number of seconds.
        TransactionManagementError: no transaction is open.
        LockTimeout, LockDeadlock: the block's wait ended in this way; the savepoint is rolled back.
    """
    limit = conf.advisory_timeout if isinstance(timeout, EllipsisType) else timeout
    if not (limit is None or is_seconds(limit)):
        raise ValueError(
            f"timeout={timeout!r} is not a number of seconds from 0 (do not wait) to "
            f"{MAX_TIMEOUT:.0f}; None waits indefinitely."
        )
    if not in_transaction(connection):
        raise TransactionManagementError(
            f"{function}() needs an open transaction, or the locks would end before it returns. "
            f"Call it inside transaction.atomic()."
        )
    started = monotonic()
    facts: Any = {"keys": (key,), "name": ":".join(map(str, key)), "using": connection.alias}
    try:
        with transaction.atomic(using=connection.alias):
            if not limit:
                yield limit == 0
                return
            milliseconds = str(max(1, round(limit * 1000)))
            [(before,)] = fetch(connection, sql.SET_LOCK_TIMEOUT, {"timeout": milliseconds})
            yield False
            fetch(connection, sql.SET_LOCK_TIMEOUT, {"timeout": before})
    except Error as error:
        if caused_by(error, psycopg.errors.LockNotAvailable):
            waited = monotonic() - started
            raise LockTimeout(**facts, timeout=limit, waited=waited) from error
        if caused_by(error, psycopg.errors.DeadlockDetected):
            raise LockDeadlock(**facts) from error
        raise


async def alocked(
    function: Callable[..., R],
    *args: Any,
    key: Key | KeyPart,
    timeout: float | EllipsisType | None = ...,  # noqa: ASYNC109 - the server's, for the lock
    shared: bool = False,
    using: str | None = None,
    **kwargs: Any,
) -> R:
    """Run a sync function under an advisory lock, in a thread, from async code.

    The whole transaction with its lock is in that thread, because Django's transactions can't span
    an await. The guarantees are those of :class:`advisory_lock` in autocommit.

    Args:
        function: a sync function.
        *args: its positional arguments.
        key: the parts of the key as a tuple, or a single part.
        timeout: seconds to wait, as in :class:`advisory_lock`.
        shared: hold the lock together with other shared holders.
        using: the database alias.
        **kwargs: its keyword arguments.

    Raises:
        TypeError: the function is async, a class or a generator function; or it returned something
            that runs later; or a part's type can't be in a key.
        LockTimeout, LockDeadlock, LockTableFull, UnsafeIsolation, StandbyDatabase,
        UnsupportedDatabase, ValueError: when :class:`advisory_lock` raises them.
    """
    if iscoroutinefunction(function):
        raise TypeError(
            "alocked() runs a sync function in a thread: Django's transactions can't span an "
            "await. Move what needs the lock into a sync function."
        )
    refuse_what_runs_later(function, "alocked")
    parts = key if isinstance(key, tuple) else (key,)

    def run() -> R:
        with advisory_lock(*parts, timeout=timeout, shared=shared, using=using):
            result = function(*args, **kwargs)
            refuse_unfinished(result, function, "alocked")
        return result

    return await sync_to_async(run)()
