"""What is locked, by whom, and who waits: read from the server, for commands, pages and tests."""

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from django.db import connections

from django_dblock.conf import conf
from django_dblock.core import application_name as labels
from django_dblock.core.connection import connection_for
from django_dblock.fencing.store import alias_for
from django_dblock.idempotency import store
from django_dblock.idempotency.identity import masked
from django_dblock.sql import idempotency_operations as idempotency_operate
from django_dblock.sql import inspect as sql


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """One advisory lock that a backend holds or waits for, in the database of one alias.

    Attributes:
        name: the key as its label tells it; None where no label fits this number (somebody else's
            lock, another namespace, or labels are off).
        key_id: the signed number; None for the locks that other programs take on two numbers.
        classid: the high half as ``pg_locks`` shows it, unsigned.
        objid: the low half, likewise.
        shared: whether it is held or wanted together with others.
        granted: whether it is held; else it is waited for.
        pid: the backend; None for a prepared transaction.
        blocked_by: the backends in front of a waiting one.
        waiting: seconds it has been waiting; None for a held one.
        transaction_age: seconds since its transaction began; None where hidden.
        application_name: as the server shows it, label included.
        user: the database role.
        client: its address; None on a unix socket.
        state: the backend's state, as ``idle in transaction``.
        query: its latest statement.
        hidden: whether the server hides the transaction's age, the client, the state, the query and
            the connection's begin from the role that asks. It never hides the application_name,
            labels included.
        backend_start: when the connection began, which tells it from others that had, or will have,
            the same pid (:func:`django_dblock.terminate_backend`); None where hidden.
    """

    name: str | None
    key_id: int | None
    classid: int
    objid: int
    shared: bool
    granted: bool
    pid: int | None
    blocked_by: tuple[int, ...]
    waiting: float | None
    transaction_age: float | None
    application_name: str | None
    user: str | None
    client: str | None
    state: str | None
    query: str | None
    hidden: bool
    backend_start: datetime | None


def advisory_locks(using: str | None = None) -> list[AdvisoryLock]:
    """Return every advisory lock of the database, by number, holders before waiters.

    One statement; takes no lock that others wait for. A picture of a moment: what it shows may be
    over when it is read. Locks of other programs in the same database are shown, too.

    Args:
        using: the database alias, as in :func:`django_dblock.advisory_lock`.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL's.
    """
    with connection_for(using).cursor() as cursor:
        cursor.execute(sql.ADVISORY_LOCKS)
        rows = cursor.fetchall()
    numbers: dict[int | None, list[int]] = defaultdict(list)
    shown: dict[int | None, str] = {}
    for number, _, _, _, _, pid, _, _, _, application_name, *_ in rows:
        if number is not None:
            numbers[pid].append(number)
            shown[pid] = application_name or ""
    namespace = conf.namespace
    names = {
        pid: labels.read(application_name, numbers[pid], namespace)
        for pid, application_name in shown.items()
    }
    return [AdvisoryLock(_name(row, names), *(*row[:6], tuple(row[6]), *row[7:])) for row in rows]


def _name(row: tuple[Any, ...], names: dict[int | None, dict[int, str]]) -> str | None:
    return None if row[0] is None else names[row[5]].get(row[0])


@dataclass(frozen=True, slots=True)
class FencedLease:
    """The latest grant of one name in the lock table; all times by the server's clock.

    Attributes:
        name: the key, as it is called in the table (:mod:`django_dblock.fencing.lease_name`).
        slot: 0, but for semaphores.
        state: ``held``; ``delayed``, it has ended, but its ``hold_at_least`` or ``lock_delay``
            keeps it from others; or ``expired``: it was given back or not renewed, and anybody may
            have it.
        token: the grant's, or what an operator raised it to.
        owner: who was granted it: host, process and thread, for people.
        age: seconds since it was granted.
        renewed: seconds since it was renewed, or granted.
        remaining: seconds until it expires, if it is not renewed; negative if it has.
        lock_delay: seconds for which it is kept from others after that.
        free_in: seconds until somebody else can have it, if it is not renewed; likewise.
        grants: how often the name was granted since its row was made.
        metadata: what the holder gave with it.
        waiting: the owners of those who wait for it in turn (``fair=True``), the first in front;
            those who poll can't be seen.
    """

    name: str
    slot: int
    state: Literal["held", "delayed", "expired"]
    token: int
    owner: str
    age: float
    renewed: float
    remaining: float
    lock_delay: float
    free_in: float
    grants: int
    metadata: dict[str, Any]
    waiting: tuple[str, ...]


def fenced_leases(
    using: str | None = None, *, name: str | None = None, expired: bool = False
) -> list[FencedLease]:
    """Return every lease that nobody else can have now, by name and slot.

    One statement; locks nothing. A picture of a moment, by the server's clock.

    Args:
        using: the database alias, as in :func:`django_dblock.fenced_lock`.
        name: only this name, as it stands in the table.
        expired: also those that anybody may have, behind the others.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL's.
        django.db.ProgrammingError: the lock table is not there; run ``manage.py migrate``.
    """
    with connections[alias_for(using)].cursor() as cursor:
        cursor.execute(sql.FENCED_LEASES, {"name": name, "expired": expired})
        rows = cursor.fetchall()
    return [
        FencedLease(*(*row, {} if metadata == "{}" else json.loads(metadata), tuple(waiting)))
        for *row, metadata, waiting in rows
    ]


@dataclass(frozen=True, slots=True)
class UnfinishedRequest:
    """A request with an idempotency key that has no answer yet; all times by the server's clock.

    Attributes:
        id: the row's, for ``dblock release --request``.
        state: ``abandoned``: whoever worked on it is gone, and a repeat takes it over, or is
            refused until a person has looked; ``free``: it was given up, and a repeat goes on after
            its last step; or ``leased``: somebody is at work on it.
        scope: whose key it is.
        key: the beginning of the key; never the whole.
        method: the HTTP method; empty for ``run_once``.
        path: the URL's path; likewise.
        owner: who had it last: host, process and thread, for people.
        token: the fencing token of the latest claim.
        age: seconds since it was begun.
        remaining: seconds until its lease ends, if it is not renewed; negative if it has; None if
            it was given back.
        expires_in: seconds until it counts as never begun; negative if it does; None while it waits
            for a person, however long.
        steps: the names of the steps that are recorded; in no order.
    """

    id: int
    state: Literal["leased", "free", "abandoned"]
    scope: str
    key: str
    method: str
    path: str
    owner: str
    token: int
    age: float
    remaining: float | None
    expires_in: float | None
    steps: tuple[str, ...]

    @property
    def name(self) -> str:
        """Scope and masked key, as ``dblock list --name`` compares them."""
        return f"{self.scope}:{self.key}"


def unfinished_requests(
    using: str | None = None, *, pk: int | None = None
) -> list[UnfinishedRequest]:
    """Return every request that has no answer yet, those that nobody works on in front.

    In ``mode="atomic"`` there are none: a request that has not ended has left nothing. One
    statement; locks nothing. A picture of a moment, by the server's clock.

    Args:
        using: the database alias, as in :func:`django_dblock.idempotent`.
        pk: only this row.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL's.
        django.db.ProgrammingError: the table is not there; run ``manage.py migrate``.
    """
    with connections[store.alias_for(using)].cursor() as cursor:
        cursor.execute(idempotency_operate.UNFINISHED, {"id": pk})
        rows = cursor.fetchall()
    return [
        UnfinishedRequest(*(*row[:3], masked(row[3]), *row[4:], tuple(sorted(steps))))
        for *row, steps in rows
    ]
