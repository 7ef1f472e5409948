"""The lock table: one statement for each function, with its result."""

import functools
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from os import getpid
from typing import Any, NamedTuple

import psycopg
from django.db import Error, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.conf import conf
from django_dblock.core.application_name import NamedKey, name
from django_dblock.core.connection import (
    caused_by,
    connection_for,
    discard_dead_in_pool,
    end_interrupted,
    in_callers_transaction,
    positional,
    ready,
)
from django_dblock.core.simple_query import Hints, fetch_directly
from django_dblock.exceptions import (
    NotReplicated,
    OpenTransaction,
    StandbyDatabase,
)
from django_dblock.sql import fencing as sql

_READ_ONLY = "25006"

FAILURES: tuple[type[Exception], ...] = (Error, StandbyDatabase)
"""The errors of a statement of this module that the server refuses, or that does not reach it."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a lease: its key, its name in the table, and the alias of the table.

    Attributes:
        kind: the primitive that uses the lease, in signals, logs and metrics: ``fenced``,
            ``semaphore`` ….
        schema: the schema in which the row was found, quoted; empty to use the search path.
    """

    key: NamedKey
    name: str
    using: str
    slot: int = 0
    kind: str = "fenced"
    schema: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments that every error and signal about this lease gets."""
        return {"keys": (self.key.parts,), "name": name(self.key), "using": self.using}


@dataclass(frozen=True, slots=True)
class Wish:
    """The terms of the lease that is requested.

    Attributes:
        lock_delay: seconds after the expiry for which nobody acquires the lease, unless it is
            released: ``lock_delay``, or what hold_at_least exceeds the ttl by, if that is more.
    """

    ttl: float
    lock_delay: float
    metadata: str
    in_turn: bool


class Grant(NamedTuple):
    """The result of a request for a lease that was granted."""

    token: int
    expires_at: datetime
    schema: str = ""


class Refusal(NamedTuple):
    """The holder of the lease; it expires in ``remaining`` seconds unless it is renewed.

    Attributes:
        schema: the schema of the row, quoted, as in :class:`Grant`; empty if it was not asked for.
    """

    remaining: float
    token: int
    owner: str
    schema: str = ""


class Look(NamedTuple):
    """The state of the lease and the queue, for a waiter in the queue.

    Attributes:
        queued: whether the waiter's ticket still exists.
        ahead: the units that the live tickets before the waiter's ticket request.
        refusal: the lease that ends first; None if there is no row.
        held: how many of the slots that the waiter can use are held.
    """

    queued: bool
    ahead: int
    refusal: Refusal | None
    held: int = 0


class Renewal(NamedTuple):
    """The result for one lease: its new expiry, if renewed, and whether the lease is still held."""

    expires_at: datetime | None
    ours: bool


def alias_for(using: str | None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else where the router writes the lock table.

    Raises:
        UnsupportedDatabase: the database is not PostgreSQL.
    """
    from django_dblock.models import FencedLock  # the app registry may come after decorators

    return connection_for(using or conf.database or router.db_for_write(FencedLock)).alias


def owner() -> str:
    """Return host, process and thread of the caller, as readable text."""
    return f"{_host()}:{getpid()}:{threading.current_thread().name}"[:255]


_host = functools.cache(socket.gethostname)  # gethostname() is a system call that releases the GIL


def acquire(place: Place, wish: Wish, ticket: int | None = None) -> Grant | Refusal | None:
    """Acquire the lease if it is free.

    Returns:
        The grant, or the holder; None if another process made the row just now: try again at once.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
        UnsupportedDatabase: the server is CockroachDB.
        NotReplicated: no synchronous standby confirmed the grant; the lease was released.
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
    row = (place.using, place.name, place.slot)
    granted = _granted.get(row)
    short: str | None = None
    # ACQUIRE alone knows the queue, and tells who holds the lease.
    if not wish.in_turn and ticket is None and granted is not False:
        short = sql.TAKE if granted else sql.TAKE_OR_INSERT
    rows: list[Any] = []
    try:
        if short is not None:
            replicated = durable(place, "taken", short, parameters, rows)
        if not rows:
            replicated = durable(place, "taken", sql.ACQUIRE, parameters, rows)
    except BaseException:
        if rows and rows[0][0] == "acquired":  # a lease that no code would release
            with suppress(*FAILURES):
                release(replace(place, schema=rows[0][5]), rows[0][1], hold_at_least=0)
        raise
    if not rows:
        return None
    outcome, token, expires_at, remaining, holder, schema, _ = rows[0]
    if granted is not (outcome == "acquired"):
        _granted.remember(row, seen=outcome == "acquired")
    if outcome == "held":
        return Refusal(remaining, token, holder, schema)
    if not replicated:
        release(replace(place, schema=schema), token, hold_at_least=0)
        raise NotReplicated(**place.facts)
    return Grant(token, expires_at, schema)


def renew(place: Place, token: int, ttl: float) -> Renewal:
    """Renew one lease.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
        NotReplicated: no synchronous standby confirmed the renewal.
    """
    parameters = renewal_parameters([(place, token, ttl)])
    rows: list[Any] = []
    if not durable(place, "renewed", sql.RENEW, parameters, rows):
        raise NotReplicated(**place.facts)
    [(_, _, _, expires_at, ours)] = rows
    return Renewal(expires_at, ours)


def renewal_parameters(leases: Sequence[tuple[Place, int, float]]) -> dict[str, list[Any]]:
    """Return the parameters of ``RENEW`` for these leases."""
    return {
        "names": [place.name for place, _, _ in leases],
        "slots": [place.slot for place, _, _ in leases],
        "tokens": [token for _, token, _ in leases],
        "ttls": [float(ttl) for _, _, ttl in leases],
    }


def release(place: Place, token: int, *, hold_at_least: float, was_lost: bool = False) -> bool:
    """Release the lease; return whether the caller still held it.

    If the server dropped the connection meanwhile, the release is sent once more on a new one: a
    second release of one grant changes nothing.

    Args:
        place: the lease.
        token: the fencing token of the grant.
        hold_at_least: seconds since the grant for which nobody else acquires the lease.
        was_lost: whether the caller has lost the lease, so that the lock_delay is kept.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
    """
    parameters = {
        "name": place.name,
        "slot": place.slot,
        "token": token,
        "hold_at_least": hold_at_least,
        "was_lost": was_lost,
    }
    row = (place.using, place.name, place.slot)
    # The short statement releases nothing if somebody waits, or if the lease is lost.
    if not (hold_at_least or was_lost or row in _awaited) and run_again(
        place, "released", sql.RELEASE_UNAWAITED, parameters
    ):
        return True
    rows = run_again(place, "released", sql.RELEASE, parameters)
    if rows and rows[0][0] is not None:
        _awaited.remember(row, seen=True)
    else:
        _awaited.pop(row, None)
    return bool(rows)


Row = tuple[str, str, int]
"""The alias, the name in the table, and the slot."""
_granted = Hints[Row]()
"""Whether the last attempt of this process was granted."""
_awaited = Hints[Row]()
"""The names that were marked by a waiter at their last release here: RELEASE is sent at once."""


def run_again(place: Place, act: str, statement: str, parameters: dict[str, Any]) -> list[Any]:
    """Run a statement with :func:`run`, and once more if the server dropped the connection.

    Use it only for a statement whose second run changes nothing. It raises the errors of
    :func:`run`.
    """
    try:
        return run(place, act, statement, parameters)
    except Error:
        connection = connections[place.using]
        if connection.connection is not None:
            raise  # the connection is alive, or a transaction is open on it: see fetch()
        discard_dead_in_pool(connection)
    return run(place, act, statement, parameters)


def run(
    place: Place,
    act: str,
    statement: str,
    parameters: dict[str, Any],
    rows: list[Any] | None = None,
) -> list[Any]:
    """Run a statement that commits by itself; return its rows.

    Above READ COMMITTED, the server refuses a row that was changed since the statement began. Then
    nothing was written, and the statement is sent again.

    Args:
        place: the lease, for errors, and for the schema of its row.
        act: what is done to the lease, for errors.
        statement: the statement.
        parameters: its parameters.
        rows: an empty list for the rows. If an exception such as a signal handler's interrupts a
            statement that has committed all the same, the list has the rows.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
    """
    rows = [] if rows is None else rows
    connection = connections[place.using]
    refuse_transaction(place, connection, act)
    while True:
        try:
            fetch_directly(connection, in_schema(statement, place.schema), parameters, rows)
        except Error as error:
            if _is_standby(connection, error):
                raise StandbyDatabase(**place.facts) from error
            was_changed = caused_by(error, psycopg.errors.SerializationFailure)
            if not was_changed or connection.in_atomic_block:  # TestCase's transaction is aborted
                raise
        else:
            return rows


@functools.lru_cache(maxsize=4096)  # one for each tenant and statement
def in_schema(statement: str, schema: str) -> str:
    """Return the statement with the names of the lock tables and of the latch table qualified.

    Args:
        statement: one on the lock tables or on the latch table, as in `django_dblock.sql.fencing`.
        schema: the schema, quoted by the server; empty to leave the names to the search path.
    """
    if not schema:
        return statement
    return _TABLE.sub(f"{schema}.".replace("%", "%%").replace("\\", "\\\\") + r"\g<0>", statement)


_TABLE = re.compile(r"\bdjango_dblock_(?:fencedlock|fencedticket|latchpart)\b")


def durable_together(
    place: Place,
    act: str,
    statements: Sequence[str],
    parameters: dict[str, Any],
    rows: list[Any],
) -> bool:
    """Run several statements in one transaction; return whether their commit was replicated.

    ``rows`` receives the last statement's rows, as in :func:`run`.

    Each statement has its own snapshot, and only the last returns rows that count. They travel in
    one message, so a client that freezes can't leave the transaction open; where the driver's
    cursor takes one statement at a time, they go one by one.

    Raises:
        OpenTransaction: the caller has a transaction open.
        StandbyDatabase: the server is a standby.
    """
    connection = connections[place.using]
    refuse_transaction(place, connection, act)
    driver = ready(connection)
    statements = [in_schema(statement, place.schema) for statement in statements]
    try:
        with unreplicated(driver) as warnings:
            if _takes_several(connection):
                _send(connection, [";".join(statements)], parameters, rows)
            else:
                with transaction.atomic(using=place.using):
                    _send(connection, statements, parameters, rows)
    except Error as error:
        if _is_standby(connection, error):
            raise StandbyDatabase(**place.facts) from error
        raise
    return not warnings


def _send(
    connection: BaseDatabaseWrapper,
    messages: Sequence[str],
    parameters: dict[str, Any],
    rows: list[Any],
) -> None:
    """Send the messages one by one; add the rows of the last result."""
    with connection.cursor() as cursor:
        try:
            for message in messages:
                cursor.execute(*positional(message, parameters))
            while cursor.nextset():
                pass
            rows += cursor.fetchall()
        except Error:
            raise
        except BaseException:
            end_interrupted(connection, cursor, rows)
            raise


def _takes_several(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the driver puts parameters into the text, as several statements need it."""
    return not connection.settings_dict["OPTIONS"].get("server_side_binding")


def refuse_transaction(place: Place, connection: BaseDatabaseWrapper, act: str) -> None:
    """Raise an error if a transaction is open; TestCase's does not count.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        NotSupportedError: the connection is in pipeline mode.
    """
    if in_callers_transaction(connection):
        raise OpenTransaction(**place.facts, act=act)


@contextmanager
def unreplicated(driver: "psycopg.Connection[Any]") -> Iterator[list[Any]]:
    """Collect the warnings of commits that no synchronous standby has confirmed.

    A warning is recognised by its source function, because its message is in the server's language.
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
    """Return whether the statement failed because the server is a standby."""
    state = getattr(error.__cause__, "sqlstate", None)
    if state != _READ_ONLY or connection.in_atomic_block:
        return False
    with connection.cursor() as cursor:
        cursor.execute(sql.IS_STANDBY)
        return bool(cursor.fetchone() == (True,))


def durable(
    place: Place, act: str, statement: str, parameters: dict[str, Any], rows: list[Any]
) -> bool:
    """Run a statement that commits by itself; return whether its commit was replicated.

    ``rows`` receives the statement's rows, as in :func:`run`.

    Raises:
        OpenTransaction: a transaction is open on the connection.
        StandbyDatabase: the server is a standby.
    """
    with unreplicated(ready(connections[place.using])) as warnings:
        run(place, act, statement, parameters, rows)
    return not warnings


# The queue of waiters.


class Ticket(NamedTuple):
    """A place in the queue for a name.

    Attributes:
        id: the order in the queue, the smallest first.
        owner: the owner in the ticket's row, because ids alone may be reused after a failover.
        topic: the payload with which a release wakes this waiter.
    """

    id: int
    owner: str
    topic: str


def schema_of(place: Place) -> str:
    """Return the schema, quoted, in which a lease of the place would be granted now.

    Raises:
        OpenTransaction: a transaction is open on the connection.
    """
    [(schema,)] = run(place, "taken", sql.SCHEMA, {})
    return str(schema)


def take_ticket(place: Place, slot: int, patience: float) -> Ticket:
    """Join the queue for the name; return the ticket.

    Args:
        place: the lease that the waiter waits for.
        slot: the kind of waiter; 0 for a lease.
        patience: seconds until the ticket expires, unless :func:`look` extends it.
    """
    who = owner()
    parameters = {"name": place.name, "slot": slot, "owner": who, "patience": patience}
    rows: list[Any] = []
    try:
        run(place, "queued for", sql.TAKE_TICKET, parameters, rows)
    except BaseException:
        for number, topic, _ in rows:
            with suppress(*FAILURES):
                drop_ticket(place, Ticket(number, who, topic))
        raise
    [(number, topic, _)] = rows
    return Ticket(number, who, topic)


def look(
    place: Place, ticket: Ticket, patience: float | None, *, scope: int = 1, least: int = 0
) -> Look:
    """Return the state of the lease and of the queue.

    Args:
        place: the lease that the waiter waits for.
        ticket: the waiter's ticket.
        patience: seconds from now for which to extend the ticket and mark the lease as awaited;
            None to change nothing.
        scope: the waiter can use slots below this number.
        least: the units that a ticket before ours counts for at least.
    """
    parameters = {
        "name": place.name,
        "ticket": ticket.id,
        "owner": ticket.owner,
        "patience": patience,
        "scope": scope,
        "least": least,
    }
    statement = sql.LOOK if patience is None else sql.STAY
    [row] = run(place, "queued for", statement, parameters)
    queued, ahead, held, remaining, token, holder, schema = row
    refusal = None if remaining is None else Refusal(remaining, token, holder, schema)
    return Look(bool(queued), int(ahead), refusal, held)


def drop_ticket(place: Place, ticket: Ticket) -> None:
    """Leave the queue; notify the next waiter if the lease is free."""
    parameters = {"name": place.name, "ticket": ticket.id, "owner": ticket.owner}
    run_again(place, "left", sql.DROP_TICKET, parameters)
