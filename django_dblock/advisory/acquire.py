"""Ask the server for locks: try first, then wait in its queue.

The protocol is described in :mod:`django_dblock.advisory.lock`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, Self

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.conf import conf
from django_dblock.core import application_name as labels
from django_dblock.core.application_name import NamedKey
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import (
    COCKROACH,
    caused_by,
    fetch,
    in_transaction,
    mark_for_rollback,
)
from django_dblock.core.simple_query import Hints, Parameter, Rows, exchange, send
from django_dblock.exceptions import (
    LockDeadlock,
    LockTableFull,
    LockTimeout,
    StandbyDatabase,
    UnsafeIsolation,
    UnsupportedDatabase,
)
from django_dblock.keys import key_id, to_pg_locks
from django_dblock.sql import advisory as sql


class Request(NamedTuple):
    """A request for locks: the keys with their numbers, the mode and the connection.

    Attributes:
        keys: the keys, encoded and named.
        ids: the signed 64-bit number of each key.
        shared: whether the locks are shared, if ``modes`` is empty.
        connection: the connection that takes the locks.
        namespace: the namespace that the numbers were made in.
        modes: 1 (shared) or 0 (exclusive) for each key; empty if all keys have the mode ``shared``.
    """

    keys: tuple[NamedKey, ...]
    ids: tuple[int, ...]
    shared: bool
    connection: BaseDatabaseWrapper
    namespace: str
    modes: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        keys: tuple[NamedKey, ...],
        *,
        shared: bool,
        connection: BaseDatabaseWrapper,
        modes: tuple[int, ...] = (),
    ) -> Self:
        """Return the request for these keys in the current namespace."""
        namespace = conf.namespace
        ids = tuple(key_id(key.data, namespace) for key in keys)
        return cls(keys, ids, shared, connection, namespace, modes)

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments that every error and signal about this request gets."""
        return {
            "keys": tuple(key.parts for key in self.keys),
            "name": labels.names(self.keys),
            "using": self.connection.alias,
        }


def try_lock(request: Request) -> bool:
    """Take the request's only lock if it is free, with one statement and without waiting.

    Returns:
        Whether the lock is held.

    Raises:
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: when
            :class:`~django_dblock.advisory_lock` raises them.
    """
    locked, _ = try_lock_and(request, parameters={})
    return locked


def try_lock_and(
    request: Request, *statements: str, parameters: Mapping[str, Parameter]
) -> tuple[bool, list[Rows]]:
    """Take the request's only lock if it is free, and run more statements in the same message.

    The statements run whether the lock was free or not. Each statement sees what the last holder
    committed.

    Returns:
        Whether the lock is held, and the rows of each statement that returns rows.

    Raises:
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: when
            :class:`~django_dblock.advisory_lock` raises them.
    """
    [number] = request.ids
    connection = request.connection
    parameters = {**_parameters(request), "id": number, **parameters}
    if conf.labels == "off":
        statement = sql.TRY_SHARED_UNLABELLED if request.shared else sql.TRY_UNLABELLED
    else:
        statement = sql.TRY_SHARED if request.shared else sql.TRY
    try:
        [[answer]], *answers = exchange(connection, statement, *statements, parameters=parameters)
        if answer == "busy":
            return request.shared and _is_held_exclusively(request), answers
    except Error as error:
        # There was no savepoint, so the transaction is aborted.
        mark_for_rollback(connection, error)
        _raise_for(error, request, None, 0.0)
    return _is_locked(request, answer), answers


def try_any(request: Request) -> int | None:
    """Take the first free lock, in the order given, with one statement and without waiting.

    Returns:
        The index of the lock in the request; None if other transactions hold all of the locks.

    Raises:
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: when
            :class:`~django_dblock.advisory_lock` raises them.
    """
    requests = [
        request._replace(keys=(key,), ids=(number,))
        for key, number in zip(request.keys, request.ids, strict=True)
    ]
    shown = list(map(_parameters, requests))
    parameters: dict[str, Parameter] = {
        "ids": list(request.ids),
        "levels": shown[0]["levels"],
        "application_names": json.dumps([one["application_name"] for one in shown]),
    }
    try:
        [[answer]] = send(request.connection, sql.TRY_ANY, parameters=parameters)
    except Error as error:
        mark_for_rollback(request.connection, error)
        _raise_for(error, request, None, 0.0)
    if answer == "busy":
        return None
    _is_locked(request, answer)
    return int(str(answer).split()[0]) - 1


def lock(
    request: Request,
    *,
    timeout: float | None,
    joined: bool,
    holders: list[Rows] | None = None,
) -> float:
    """Take all locks or none, waiting up to ``timeout`` seconds; return the seconds waited.

    Args:
        request: what to lock.
        timeout: seconds for all locks together; 0 does not wait; None waits as long as the server's
            ``lock_timeout`` allows.
        joined: whether the caller opened the transaction, so that it must stay usable.
        holders: receives the rows of ``sql.HOLDERS`` after a timeout, if that statement can travel
            with the rollback to the savepoint; for :func:`name_holder`.

    Raises:
        LockTimeout, LockDeadlock, LockTableFull, UnsafeIsolation, StandbyDatabase,
        UnsupportedDatabase: when :class:`~django_dblock.advisory_lock` raises them.
    """
    started = monotonic()
    # A single lock is tried first: the statement is half as long, and in the caller's transaction
    # it needs no savepoint, which would undo a failed wait. Several locks can't be tried: if only
    # some of them were free, these could not be released before the transaction ends.
    number = None if len(request.ids) > 1 or request.modes else request.ids[0]
    if number is not None and (
        joined or timeout == 0 or not (request.shared or number in _contended)
    ):
        if try_lock(request):
            return 0.0
        if timeout == 0:
            raise LockTimeout(**request.facts, timeout=0, waited=monotonic() - started)
        _contended.remember(number, seen=True)
    parameters = _parameters(request)
    if request.modes:
        statement = sql.WAIT_ALL_MIXED
        parameters["ids"] = list(request.ids)
        parameters["modes"] = list(request.modes)
    elif len(request.ids) == 1:
        statement = sql.WAIT_SHARED if request.shared else sql.WAIT
        parameters["id"] = request.ids[0]
    else:
        statement = sql.WAIT_ALL_SHARED if request.shared else sql.WAIT_ALL
        parameters["ids"] = list(request.ids)
    parameters["timeout"] = _milliseconds_left(timeout, started)
    try:
        if joined:
            answers = _send_in_savepoint(request, statement, parameters, holders)
        else:
            answers = send(request.connection, statement, parameters=parameters)
    except Error as error:
        _raise_for(error, request, timeout, monotonic() - started)
    [first] = answers[0]
    _is_locked(request, first)  # a refusal has the same reason in each row
    if all(row == ("locked",) for row in answers):
        _contended.pop(number, None)
        return 0.0
    return monotonic() - started


_contended = Hints[int | None]()
"""The numbers of locks that were not free the last time: then the wait is sent at once."""


def name_holder(error: LockTimeout, request: Request, known: list[Rows]) -> None:
    """Add the holder of the lock to the error; leave the error as it is if the look-up fails.

    In a transaction the look-up runs under a savepoint, so that the transaction stays usable.

    Args:
        error: the error that will be raised.
        request: the request that timed out.
        known: the holders that :func:`lock` has received already; if empty, one statement is sent.
    """
    try:
        if known:
            [rows] = known
        elif in_transaction(request.connection):
            rows = _send_in_savepoint(request, sql.HOLDERS, _halves(request))
        else:
            rows = fetch(request.connection, sql.HOLDERS, _halves(request))
    except Error:  # the caller must get the LockTimeout, not this error
        return
    if rows:
        [(pid, application_name)] = rows
        error.name_holder(_described(pid, application_name), int(pid))


def _halves(request: Request) -> dict[str, Parameter]:
    halves = [to_pg_locks(number) for number in request.ids]
    return {
        "classids": [classid for classid, _ in halves],
        "objids": [objid for _, objid in halves],
    }


def _described(pid: str, application_name: str | None) -> str:
    program, shown = labels.split(application_name or "")
    named = f" of {program!r}" if program else ""
    return f"backend {pid}{named}{f' (label {chr(32).join(shown)})' if shown else ''}"


def _is_held_exclusively(request: Request) -> bool:
    """Return whether this transaction already holds the lock, exclusively."""
    # Up to PostgreSQL 16, trying the shared form fails while another transaction waits, even for
    # the holder of the lock.
    [number] = request.ids
    classid, objid = to_pg_locks(number)
    parameters: dict[str, Parameter] = {"classid": classid, "objid": objid}
    return send(request.connection, sql.IS_HELD, parameters=parameters) == [("held",)]


def _milliseconds_left(timeout: float | None, started: float) -> str | None:
    """Return the value of ``lock_timeout`` for the rest of the timeout; None without a timeout."""
    if timeout is None:
        return None
    # at least 1: for the server, 0 means no limit
    return str(max(1, math.ceil((timeout - (monotonic() - started)) * 1000)))


def _send_in_savepoint(
    request: Request,
    statement: str,
    parameters: dict[str, Parameter],
    holders: list[Rows] | None = None,
) -> Rows:
    connection = request.connection
    try:
        return send(connection, sql.SAVEPOINT, statement, sql.RELEASE, parameters=parameters)
    except BaseException as error:  # also a worker's time limit and Ctrl-C, which interrupt a wait
        try:
            if holders is not None and caused_by(error, psycopg.errors.LockNotAvailable):
                rows = send(
                    connection, sql.ROLLBACK, sql.HOLDERS, sql.RELEASE, parameters=_halves(request)
                )
                holders.append(rows)
            else:
                send(connection, sql.ROLLBACK, sql.RELEASE, parameters={})
        except BaseException as later:
            mark_for_rollback(connection, later)
            if not isinstance(later, Error):  # a signal handler's exception must not be swallowed
                raise
        raise


def _parameters(request: Request) -> dict[str, Parameter]:
    """Return the parameters that all statements have.

    Raises:
        UnsupportedDatabase: the server is CockroachDB.
    """
    application_name = _reported_application_name(request.connection)
    if (mode := conf.labels) != "off":
        application_name = labels.labelled(
            application_name or "", request.keys, request.ids, mode, request.namespace
        )
    levels = "%" if conf.allow_snapshot_isolation else "read %"
    return {"application_name": application_name, "levels": levels}


def _reported_application_name(connection: BaseDatabaseWrapper) -> str | None:
    """Return the ``application_name`` that the server last reported; no round trip.

    Raises:
        UnsupportedDatabase: the server is CockroachDB.
    """
    try:
        status = connection.connection.pgconn.parameter_status
        # The server reports each change, also the one that a rollback makes.
        reported, cockroach = status(b"application_name"), status(COCKROACH)
    except psycopg.Error:  # the connection is closed; the next statement raises for that
        return None
    if cockroach:
        raise UnsupportedDatabase(using=connection.alias, engine="CockroachDB")
    return None if reported is None else reported.decode(errors="replace")


def _is_locked(request: Request, answer: str | None) -> bool:
    """Return True if the statement's result says that the lock is held.

    Raises:
        StandbyDatabase, UnsafeIsolation: the result names that reason.
    """
    if answer is not None and answer.endswith(("]", "locked", "waited")):
        return True
    if answer == "standby":
        raise StandbyDatabase(**request.facts)
    raise UnsafeIsolation(**request.facts, isolation=str(answer))


def _raise_for(error: Error, request: Request, timeout: float | None, waited: float) -> NoReturn:
    """Raise the package's error for an error that the lock caused; else raise Django's again."""
    cause = error.__cause__
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        raise LockTimeout(**request.facts, timeout=timeout, waited=waited) from error
    if isinstance(cause, psycopg.errors.DeadlockDetected):
        raise LockDeadlock(**request.facts) from error
    # The hint names the setting in every language; without the hint, the server's memory is full.
    if isinstance(cause, psycopg.errors.OutOfMemory) and "max_locks_per_transaction" in str(
        cause.diag.message_hint
    ):
        raise LockTableFull(**request.facts) from error
    raise error
