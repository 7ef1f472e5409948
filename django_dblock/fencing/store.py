"""The lock table's answers: one statement each, with what a refusal means."""

import functools
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from os import getpid
from typing import Any, NamedTuple

import psycopg
from django.db import Error, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.conf import conf
from django_dblock.core.application_name import NamedKey, name
from django_dblock.core.connection import (
    connection_for,
    drop_if_dead,
    in_callers_transaction,
    positional,
)
from django_dblock.exceptions import (
    NotReplicated,
    OpenTransaction,
    StandbyDatabase,
    UnsupportedDatabase,
)
from django_dblock.sql import fencing as sql

_READ_ONLY = "25006"
_SERIALIZATION_FAILURE = "40001"


@dataclass(frozen=True, slots=True)
class Place:
    """Which lease: the key, its name in the table, and the alias of the table.

    Attributes:
        kind: what the lease is for, in signals, logs and metrics: ``fenced``, ``semaphore`` ….
    """

    key: NamedKey
    name: str
    using: str
    slot: int = 0
    kind: str = "fenced"

    @property
    def facts(self) -> dict[str, Any]:
        """What every error and signal about this lease carries."""
        return {"keys": (self.key.parts,), "name": name(self.key), "using": self.using}


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for, besides the place."""

    ttl: float
    lock_delay: float
    metadata: str
    in_turn: bool


class Grant(NamedTuple):
    """The lease is ours."""

    token: int
    expires_at: datetime


class Refusal(NamedTuple):
    """The lease is somebody's; ``remaining`` seconds of it are left, unless it is renewed."""

    remaining: float
    token: int
    owner: str


class Renewal(NamedTuple):
    """What became of one lease in a batch: its new expiry, if any, and whether it is still ours."""

    expires_at: datetime | None
    ours: bool


def alias_for(using: str | None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else where the router writes the lock table.

    Raises:
        UnsupportedDatabase: it is not PostgreSQL.
    """
    from django_dblock.models import FencedLock  # the app registry may come after decorators

    return connection_for(using or conf.database or router.db_for_write(FencedLock)).alias


def owner() -> str:
    """Who we are, for people: host, process and thread."""
    return f"{_host()}:{getpid()}:{threading.current_thread().name}"[:255]


_host = functools.cache(socket.gethostname)  # a system call, before which the GIL is given away


def acquire(place: Place, wish: Wish, ticket: int | None = None) -> Grant | Refusal | None:
    """Take the lease if it is free; None if the row appeared just now: try again at once.

    Raises:
        OpenTransaction, StandbyDatabase, UnsupportedDatabase, NotReplicated: see there.
    """
    parameters = {
        "name": place.name,
        "slot": place.slot,
        "owner": owner(),
        "ttl": wish.ttl,
        "lock_delay": wish.lock_delay,
        "metadata": wish.metadata,
        "in_turn": wish.in_turn,
        "ticket": ticket,
    }
    try:
        rows, replicated = durable(place, "taken", sql.ACQUIRE, parameters)
    except Error as error:
        if is_lost_race(error):
            return None
        raise
    if not rows:
        return None
    outcome, token, expires_at, remaining, holder, _ = rows[0]
    if outcome == "cockroach":
        raise UnsupportedDatabase(using=place.using, engine="CockroachDB")
    if outcome == "held":
        return Refusal(remaining, token, holder)
    if not replicated:
        release(place, token, hold_at_least=0)
        raise NotReplicated(**place.facts)
    return Grant(token, expires_at)


def renew(place: Place, token: int, ttl: float) -> Renewal:
    """Renew one lease.

    Raises:
        OpenTransaction, StandbyDatabase, NotReplicated: see there.
    """
    parameters = renewal_parameters([(place, token, ttl)])
    rows, replicated = durable(place, "renewed", sql.RENEW, parameters)
    if not replicated:
        raise NotReplicated(**place.facts)
    [(_, _, _, expires_at, ours)] = rows
    return Renewal(expires_at, ours)


def renewal_parameters(leases: Sequence[tuple[Place, int, float]]) -> dict[str, list[Any]]:
    """Put leases into the form that the one statement for all of them takes."""
    return {
        "names": [place.name for place, _, _ in leases],
        "slots": [place.slot for place, _, _ in leases],
        "tokens": [token for _, token, _ in leases],
        "ttls": [float(ttl) for _, _, ttl in leases],
    }


def release(place: Place, token: int, *, hold_at_least: float) -> bool:
    """Give the lease back; whether it was still ours to give.

    Where the server dropped the connection meanwhile, it is tried once more on a new one: a second
    release of one grant does nothing more.

    Raises:
        OpenTransaction, StandbyDatabase: see there.
    """
    parameters = {
        "name": place.name,
        "slot": place.slot,
        "token": token,
        "hold_at_least": hold_at_least,
    }
    return bool(run_again(place, "released", sql.RELEASE, parameters))


def is_lost_race(error: Error) -> bool:
    """Whether another session was faster, as the server says it above READ COMMITTED."""
    return getattr(error.__cause__, "sqlstate", None) == _SERIALIZATION_FAILURE


def run_again(place: Place, act: str, statement: str, parameters: dict[str, Any]) -> list[Any]:
    """Do what :func:`run` does; once more, on a new connection, if the server dropped this one.

    For statements of which a second run changes nothing.
    """
    try:
        return run(place, act, statement, parameters)
    except Error:
        connection = connections[place.using]
        if connection.in_atomic_block or not _is_dropped(connection):
            raise
        connection.close()
    return run(place, act, statement, parameters)


def _is_dropped(connection: BaseDatabaseWrapper) -> bool:
    return connection.connection is not None and connection.connection.closed


def run(place: Place, act: str, statement: str, parameters: dict[str, Any]) -> list[Any]:
    """Run a statement that commits by itself; return its rows.

    Raises:
        OpenTransaction: it would not be on its own.
        StandbyDatabase: the server is one.
    """
    connection = connections[place.using]
    refuse_transaction(place, connection, act)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            rows: list[Any] = cursor.fetchall()
            return rows
    except Error as error:
        if _is_standby(connection, error):
            raise StandbyDatabase(**place.facts) from error
        raise


def durable_together(
    place: Place, act: str, statements: Sequence[str], parameters: dict[str, Any]
) -> tuple[list[Any], bool]:
    """Run several statements in a transaction of their own; return as :func:`durable`.

    Each statement has its own snapshot, and only the last returns rows that count. They travel in
    one message, so a client that freezes can't leave the transaction open; where the driver's
    cursor takes one statement at a time, they go one by one.

    Raises:
        OpenTransaction: the caller has a transaction open.
        StandbyDatabase: the server is a standby.
    """
    connection = connections[place.using]
    refuse_transaction(place, connection, act)
    drop_if_dead(connection)
    connection.ensure_connection()
    try:
        with unreplicated(connection.connection) as warnings:
            if _takes_several(connection):
                with connection.cursor() as cursor:
                    cursor.execute(*positional(";".join(statements), parameters))
                    while cursor.nextset():
                        pass
                    rows: list[Any] = cursor.fetchall()
            else:
                with transaction.atomic(using=place.using), connection.cursor() as cursor:
                    for statement in statements:
                        cursor.execute(*positional(statement, parameters))
                    rows = cursor.fetchall()
    except Error as error:
        if _is_standby(connection, error):
            raise StandbyDatabase(**place.facts) from error
        raise
    return rows, not warnings


def _takes_several(connection: BaseDatabaseWrapper) -> bool:
    """Whether the driver puts parameters into the text, as a message of several statements needs.

    The driver's pipeline mode takes one statement at a time, whatever the cursor.
    """
    options = connection.settings_dict["OPTIONS"]
    pipeline = getattr(connection.connection, "_pipeline", None)
    return not options.get("server_side_binding") and pipeline is None


def refuse_transaction(place: Place, connection: BaseDatabaseWrapper, act: str) -> None:
    """Raise OpenTransaction if one is open, but for TestCase's, as ``atomic(durable=True)``."""
    if in_callers_transaction(connection):
        raise OpenTransaction(**place.facts, act=act)


@contextmanager
def unreplicated(driver: "psycopg.Connection[Any]") -> Iterator[list[Any]]:
    """Collect the warnings of commits that no synchronous standby has confirmed.

    Told by the function that gives it, because the message is in the server's language.
    """
    found: list[Any] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.source_function == "SyncRepWaitForLSN":
            found.append(notice.message_primary)

    driver.add_notice_handler(hear)
    try:
        yield found
    finally:
        driver.remove_notice_handler(hear)


def _is_standby(connection: BaseDatabaseWrapper, error: Error) -> bool:
    """Whether the statement failed because the server is one."""
    state = getattr(error.__cause__, "sqlstate", None)
    if state != _READ_ONLY or connection.in_atomic_block:
        return False
    with connection.cursor() as cursor:
        cursor.execute(sql.IS_STANDBY)
        return bool(cursor.fetchone() == (True,))


def durable(
    place: Place, act: str, statement: str, parameters: dict[str, Any]
) -> tuple[list[Any], bool]:
    """Run a statement that commits by itself; return its rows, and whether it was replicated."""
    connection = connections[place.using]
    connection.ensure_connection()
    with unreplicated(connection.connection) as warnings:
        rows = run(place, act, statement, parameters)
    return rows, not warnings
