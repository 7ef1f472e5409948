"""Ask the server for locks: try first, then wait in its queue. See the protocol in ``advisory``."""

import math
import time
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock import labels
from django_dblock.conf import conf
from django_dblock.exceptions import (
    LockDeadlock,
    LockTableFull,
    LockTimeout,
    StandbyDatabase,
    UnsafeIsolation,
    UnsupportedDatabase,
)
from django_dblock.keys import EncodedKey, Key, key_id
from django_dblock.sql import advisory as sql


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: keys with their numbers, how, and on which connection."""

    keys: tuple[Key, ...]
    ids: tuple[int, ...]
    shared: bool
    connection: BaseDatabaseWrapper

    @classmethod
    def of(
        cls, keys: tuple[EncodedKey, ...], *, shared: bool, connection: BaseDatabaseWrapper
    ) -> Self:
        """Number the keys with the project's namespace."""
        namespace = conf.namespace
        ids = tuple(key_id(data, namespace) for _, data in keys)
        return cls(tuple(key for key, _ in keys), ids, shared, connection)

    @property
    def facts(self) -> dict[str, Any]:
        """What every error about this request carries."""
        return {
            "keys": self.keys,
            "name": labels.names(self.keys),
            "using": self.connection.alias,
        }


def try_lock(request: Request) -> bool:
    """Take the one lock if it is free; one statement, no waiting.

    Raises:
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: see there.
    """
    [number] = request.ids
    # No savepoint: an error here (no room, a timeout, a lost connection) ends the transaction, and
    # Django has to know, or leaving atomic() would send a COMMIT that the server turns into a
    # rollback without a word.
    with transaction.mark_for_rollback_on_error(using=request.connection.alias):
        parameters = {**_parameters(request), "id": number}
        try:
            with request.connection.cursor() as cursor:
                cursor.execute(sql.TRY_SHARED if request.shared else sql.TRY, parameters)
                [answer] = cursor.fetchone()
        except Error as error:
            _raise_for(error, request, None, 0.0)
    if answer not in ("locked", "busy"):
        _refuse(request, answer)
    return bool(answer == "locked")


def lock(request: Request, *, timeout: float | None, joined: bool) -> float:
    """Take all locks or none, waiting up to ``timeout`` seconds; return the seconds waited.

    Args:
        request: what to lock.
        timeout: seconds for all locks together; 0 does not wait; None leaves it to the server.
        joined: whether the transaction is somebody else's and must survive a failure.

    Raises:
        LockTimeout, LockDeadlock, LockTableFull, UnsafeIsolation, StandbyDatabase,
        UnsupportedDatabase: see there.
    """
    started = time.monotonic()
    if len(request.ids) == 1:
        if try_lock(request):
            return 0.0
        if timeout == 0:
            raise LockTimeout(**request.facts, timeout=0, waited=time.monotonic() - started)
    left = None if timeout is None else timeout - (time.monotonic() - started)
    timeout_ms = None if left is None else math.ceil(left * 1000)
    parameters = {
        **_parameters(request),
        "ids": list(request.ids),
        "shared": request.shared,
        "timeout_ms": timeout_ms,
    }
    try:
        rows = _wait_in_savepoint(request, parameters) if joined else _wait(request, parameters)
    except Error as error:
        _raise_for(error, request, timeout, time.monotonic() - started)
    if rows[0][0] != "locked":
        _refuse(request, rows[0][0])
    return time.monotonic() - started if any(row[3] for row in rows) else 0.0


def _wait(request: Request, parameters: dict[str, Any]) -> list[Any]:
    with request.connection.cursor() as cursor:
        cursor.execute(sql.WAIT, parameters)
        return list(cursor.fetchall())


def _wait_in_savepoint(request: Request, parameters: dict[str, Any]) -> list[Any]:
    connection = request.connection
    # Parameters bound by the server need the extended protocol: one statement per message.
    one_message = not connection.settings_dict["OPTIONS"].get("server_side_binding")
    with connection.cursor() as cursor:
        try:
            if one_message:
                cursor.execute(sql.SAVEPOINT_WAIT_RELEASE, parameters)
                cursor.nextset()
                return list(cursor.fetchall())
            cursor.execute(sql.SAVEPOINT)
            cursor.execute(sql.WAIT, parameters)
            rows = list(cursor.fetchall())
            cursor.execute(sql.RELEASE)
        except BaseException:  # a worker's time-out and Ctrl-C, too, come in the middle of a wait
            try:
                cursor.execute(sql.ROLLBACK_RELEASE if one_message else sql.ROLLBACK)
                if not one_message:
                    cursor.execute(sql.RELEASE)
            except Exception:  # noqa: BLE001 - the connection is gone: show the first error
                if connection.in_atomic_block:
                    connection.needs_rollback = True
            raise
        return rows


def _parameters(request: Request) -> dict[str, Any]:
    connection = request.connection
    connection.ensure_connection()
    application_name = ""
    if (mode := conf.labels) != "off":
        with connection.wrap_database_errors:
            # what the server last reported: no round trip, and right after a rollback, too
            current = connection.connection.info.parameter_status("application_name")
        shown = [
            labels.label(key, number, mode)
            for key, number in zip(request.keys, request.ids, strict=True)
        ]
        application_name = labels.compose(current or "", shown)
    levels = "%" if conf.allow_snapshot_isolation else "read %"
    return {"application_name": application_name, "levels": levels}


def _refuse(request: Request, answer: str) -> NoReturn:
    if answer == "standby":
        raise StandbyDatabase(**request.facts)
    if answer == "cockroach":
        raise UnsupportedDatabase(using=request.connection.alias, engine="CockroachDB")
    raise UnsafeIsolation(**request.facts, isolation=answer)


def _raise_for(error: Error, request: Request, timeout: float | None, waited: float) -> NoReturn:
    """Raise our own error for what the lock caused; anything else goes on as Django's."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None)
    if state == "55P03":
        raise LockTimeout(**request.facts, timeout=timeout, waited=waited) from error
    if state == "40P01":
        raise LockDeadlock(**request.facts) from error
    # The hint names the setting in every language; without it, it is the server's memory.
    if state == "53200" and "max_locks_per_transaction" in str(_hint(cause)):
        raise LockTableFull(**request.facts) from error
    raise error


def _hint(cause: BaseException | None) -> str | None:
    return getattr(getattr(cause, "diag", None), "message_hint", None)
