"""The locks, their holders and waiters, read from the server for commands, pages and tests."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import psycopg
from django.db import OperationalError, connections, transaction

from django_dblock.conf import conf
from django_dblock.coordination import latch
from django_dblock.core import application_name as labels
from django_dblock.core.connection import caused_by, connection_for, drop_if_dead, fetch
from django_dblock.fencing.lease_name import Role, meaning_of, title_of
from django_dblock.fencing.store import alias_for
from django_dblock.idempotency import store
from django_dblock.idempotency.identity import shown_key
from django_dblock.sql import idempotency_operations as idempotency_sql
from django_dblock.sql import inspect as sql

MOST_BLOCKERS = 10
"""Backends that ``blocked_by`` names at most; a long queue would be repeated on each line."""


class TableIsLocked(OperationalError):
    """A session has locked a table of the package for itself, so the table can't be read now."""


@contextmanager
def short_wait(alias: str) -> Iterator[None]:
    """Let the block's statements wait a second at most for a session that has locked a table.

    Without it a migration that waits for its turn stops every list and every monitor page. The
    limit ends with the block, which is a transaction that is rolled back, or a savepoint of the
    open transaction.

    Raises:
        TableIsLocked: a session has locked the table for itself, for example by ALTER TABLE.

    Source: PostgreSQL manual, 13.3.1 "Table-Level Locks", 19.11 "lock_timeout".
    """
    connection = connections[alias]
    drop_if_dead(connection)
    try:
        with transaction.atomic(using=alias):
            fetch(connection, sql.SHORT_WAIT, {})
            yield
            transaction.set_rollback(True, using=alias)
    except OperationalError as error:
        if not caused_by(error, psycopg.errors.LockNotAvailable):
            raise
        sessions = [
            f"backend {pid} ({program})" if program else f"backend {pid}"
            for pid, program in fetch(connection, sql.TABLE_LOCKERS, {})
        ]
        raise TableIsLocked(
            f"{', '.join(sessions) or 'another session'} has locked the table for itself, or waits "
            f"to, as ALTER TABLE and VACUUM FULL do"
        ) from error


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """One advisory lock that a backend holds or waits for, in the database of one alias.

    Attributes:
        name: the key as its label shows it; None if no label matches the number (another
            program's lock, another namespace, or labels are off).
        key_id: the signed number; None for the locks that other programs take on two numbers.
        classid: the high half as ``pg_locks`` shows it, unsigned.
        objid: the low half as ``pg_locks`` shows it, unsigned.
        shared: whether the lock is held or requested in shared mode.
        granted: whether the lock is held; otherwise the backend waits for it.
        pid: the backend; None for a prepared transaction.
        blocked_by: the backends that block the wait, at most ten. For a waiter: the holders in a
            conflicting mode, or the nearest conflicting waiter in front; for a holder that waits
            for another type of lock: what ``pg_blocking_pids`` reports. 0 is a prepared
            transaction.
        waiting: seconds the backend has been waiting, for this lock or (held) for ``waits_for``;
            None if it does not wait.
        transaction_age: seconds since the backend's transaction began; None if hidden.
        application_name: as the server shows it, label included.
        user: the database role.
        client: the client's address; None on a unix socket.
        state: the backend's state, for example ``idle in transaction``.
        query: the backend's latest statement; None if ``last_statement`` describes it.
        hidden: whether the server hides the transaction's age, the client, the state, the query and
            the connection's start from the role that asks. The server never hides the
            application_name, labels included.
        backend_start: when the connection began, which distinguishes it from other connections with
            the same pid (:func:`django_dblock.terminate_backend`); None if hidden.
        place: the waiter's place in the lock's queue, from 1; None for a held lock.
        waits_for: on a held lock, the other object that its backend waits for: ``a row of
            auth_user``, a table, ``another transaction``; None if the backend waits for nothing but
            advisory locks.
        last_statement: if the backend's latest statement was one of this package's own locking
            statements: ``took this lock``, ``took another lock`` or ``took several locks``; for a
            waiter ``requests this lock``; None otherwise.
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
    place: int | None = None
    waits_for: str | None = None
    last_statement: str | None = None


@dataclass(frozen=True, slots=True)
class BlockingSession:
    """A backend without an advisory lock that blocks a holder or waiter of one.

    Attributes:
        pid: the backend; None for prepared transactions, which the server does not tell apart.
        program: the program's own name of the backend.
        keeps: how many backends wait for this one, directly or behind others.
        holds: the object that the others wait for (``a row of auth_user``), then the tables that
            the backend has locked in any mode, at most five, the strongest locks first.
        waits_for: the object that the backend itself waits for; None if it waits for nothing.
        blocked_by: the backends that block that wait, at most ten.
        waiting: seconds the backend has been waiting; None if it does not wait.
        transaction_age: seconds since the backend's transaction began; None if hidden.
        user: the database role.
        client: the client's address; None on a unix socket.
        state: the backend's state.
        query: the backend's latest statement.
        hidden: whether the server hides the columns that ``AdvisoryLock.hidden`` lists.
        backend_start: when the connection began; None if hidden.
        lock: identifies the lock that the backend waits for, for grouping; None if none.
    """

    pid: int | None
    program: str
    keeps: int
    holds: tuple[str, ...]
    waits_for: str | None
    blocked_by: tuple[int, ...]
    waiting: float | None
    transaction_age: float | None
    user: str | None
    client: str | None
    state: str | None
    query: str | None
    hidden: bool
    backend_start: datetime | None
    lock: str | None = None


@dataclass(frozen=True, slots=True)
class OtherWait:
    """A wait for a lock that is not advisory.

    Attributes:
        pid: the backend that waits.
        lock: identifies the lock.
        waits_for: a description of the lock.
        waiting: seconds.
        blocked_by: the backends in front.
    """

    pid: int
    lock: str
    waits_for: str
    waiting: float | None
    blocked_by: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LockWaits:
    """All advisory locks, and the other locks that their holders wait for.

    Attributes:
        locks: every advisory lock, as :func:`advisory_locks` returns them.
        blockers: the backends without an advisory lock that block the others, those with
            most waiters first.
        waits: the waits for other types of locks that lead to them.
        standby: whether the server is a standby: the locks of the primary are unknown to it.
    """

    locks: list[AdvisoryLock]
    blockers: list[BlockingSession]
    waits: list[OtherWait]
    standby: bool = False


def advisory_locks(using: str | None = None) -> list[AdvisoryLock]:
    """Return every advisory lock of the database, by number, holders before waiters.

    One statement, and a second one while a holder waits for another type of lock. It takes no lock
    that other sessions wait for. The list is a snapshot: it may be outdated when you read it. It
    includes the locks of other programs in the same database.

    Args:
        using: the database alias, as in :func:`django_dblock.advisory_lock`.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL.

    Source: PostgreSQL manual, 53.13 "pg_locks".
    """
    return lock_waits(using).locks


def lock_waits(using: str | None = None, *, own_namespace: bool = False) -> LockWaits:
    """Return every advisory lock, and the sessions that block each other, by all types of locks.

    A backend that holds an advisory lock may itself wait for a row or a table that a backend
    without any advisory lock has locked. Those chains are followed to their ends. The
    statements and the snapshot are those of :func:`advisory_locks`.

    Args:
        using: the database alias, as in :func:`django_dblock.advisory_lock`.
        own_namespace: if the project has namespaces, only the locks of sessions whose labels show
            a key of the current namespace. Every other session that blocks one of these is among
            the blockers, without its statement. Where labels are off, no lock can be attributed.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL.

    Source: PostgreSQL manual, 53.13 "pg_locks", 9.27 "pg_blocking_pids()".
    """
    connection = connection_for(using)
    rows = fetch(connection, sql.ADVISORY_LOCKS, {})
    standby = rows[0][-1]
    if rows[0][1] is None:  # the row without a lock
        rows = []
    stuck = sorted({row[5] for row in rows if row[16]})
    chain = fetch(connection, sql.WAITS_ELSEWHERE, {"pids": stuck}) if stuck else []
    waits = [
        OtherWait(pid, lock, waits_for, waiting, tuple(dict.fromkeys(blocked_by)))
        for pid, waits_for, lock, waiting, blocked_by, *_ in chain
        if waits_for is not None
    ]
    locks = _locks(rows, {wait.pid: wait for wait in waits})
    if not (own_namespace and conf.has_namespaces):
        return LockWaits(locks, _blocking_sessions(locks, waits, chain), waits, standby)
    own = {lock.pid for lock in locks if lock.name is not None}
    locks = [lock for lock in locks if lock.pid in own]
    blockers = _blocking_sessions(locks, waits, chain)
    keeping = [replace(session, query=None) for session in blockers if session.keeps]
    shown = own.union(session.pid for session in keeping)
    return LockWaits(locks, keeping, [wait for wait in waits if wait.pid in shown], standby)


def _locks(rows: Sequence[tuple[Any, ...]], waits: Mapping[int, OtherWait]) -> list[AdvisoryLock]:
    numbers: dict[int | None, list[int]] = defaultdict(list)
    shown: dict[int | None, str] = {}
    for row in rows:
        if row[0] is not None:
            numbers[row[5]].append(row[0])
            shown[row[5]] = row[8] or ""
    namespace = conf.namespace
    names = {
        pid: labels.read(application_name, numbers[pid], namespace)
        for pid, application_name in shown.items()
    }
    queues = _queues(rows)
    locks = []
    for (
        number, classid, objid, shared, granted, pid, own_wait, age, application_name, user,
        client, state, query, hidden, backend_start, locked, elsewhere, _,
    ) in rows:  # fmt: skip
        name = None if number is None else names[pid].get(number)
        blocked_by: tuple[int, ...] = ()
        place = waits_for = None
        waiting = own_wait
        if not granted:
            blocked_by, place = queues[classid, objid, number is None][pid]
        elif elsewhere and pid in waits:
            wait = waits[pid]
            blocked_by, waits_for, waiting = wait.blocked_by, wait.waits_for, wait.waiting
        last = None if locked is None else _last_statement(locked, number, granted=granted)
        locks.append(
            AdvisoryLock(
                name, number, classid, objid, shared, granted, pid, blocked_by[:MOST_BLOCKERS],
                waiting, age, application_name, user, client, state, query, hidden, backend_start,
                place, waits_for, last,
            )
        )  # fmt: skip
    return locks


def _last_statement(locked: str, number: int | None, *, granted: bool) -> str:
    if not granted:
        return "requests this lock"
    if locked == "several":
        return "took several locks"
    return "took this lock" if locked == str(number) else "took another lock"


_Place = tuple[int, int, bool]


def _queues(
    rows: Sequence[tuple[Any, ...]],
) -> dict[_Place, dict[int, tuple[tuple[int, ...], int]]]:
    """Return the blockers and the place of each waiter, for each lock that has waiters.

    Two shared locks don't conflict, every other pair does. The rows of a lock come in the order of
    its queue.
    """
    wanted = {(row[1], row[2], row[0] is None) for row in rows if not row[4]}
    of: dict[_Place, list[tuple[Any, ...]]] = defaultdict(list)
    if wanted:
        for row in rows:
            place = (row[1], row[2], row[0] is None)
            if place in wanted:
                of[place].append(row)
    queues: dict[_Place, dict[int, tuple[tuple[int, ...], int]]] = {}
    for place, those in of.items():
        holders = tuple(dict.fromkeys(row[5] or 0 for row in those if row[4]))
        exclusive = tuple(dict.fromkeys(row[5] or 0 for row in those if row[4] and not row[3]))
        queue: dict[int, tuple[tuple[int, ...], int]] = {}
        in_front: tuple[int, ...] = ()
        exclusive_in_front: tuple[int, ...] = ()
        for number, row in enumerate((row for row in those if not row[4]), start=1):
            shared, pid = row[3], row[5]
            if shared:
                queue[pid] = (exclusive or exclusive_in_front, number)
            else:
                queue[pid] = (holders or in_front, number)
                exclusive_in_front = (pid,)
            in_front = (pid,)
        queues[place] = queue
    return queues


def _blocking_sessions(
    locks: Sequence[AdvisoryLock], waits: Sequence[OtherWait], chain: Sequence[tuple[Any, ...]]
) -> list[BlockingSession]:
    if not chain:
        return []
    with_lock = {lock.pid for lock in locks}
    kept_by: dict[object, list[object]] = defaultdict(list)
    for lock in locks:
        place = (lock.classid, lock.objid, lock.key_id is None)
        if lock.granted:
            kept_by[lock.pid or 0].append(place)
        else:
            kept_by[place].append(lock.pid)
    wanted: dict[int, list[str]] = defaultdict(list)
    for wait in waits:
        for pid in wait.blocked_by:
            kept_by[pid].append(wait.pid)
            wanted[pid].append(wait.waits_for)
    sessions = [
        BlockingSession(
            pid=pid or None,
            program=labels.without_labels(application_name or ""),
            keeps=_count_kept(pid, kept_by),
            holds=tuple(dict.fromkeys([*wanted[pid], *tables])),
            waits_for=waits_for,
            blocked_by=tuple(dict.fromkeys(blocked_by))[:MOST_BLOCKERS],
            waiting=waiting,
            transaction_age=age,
            user=user,
            client=client,
            state=state,
            query=query,
            hidden=hidden,
            backend_start=backend_start,
            lock=lock,
        )
        for (
            pid, waits_for, lock, waiting, blocked_by, tables, application_name, age, user, client,
            state, query, hidden, backend_start,
        ) in chain
        if pid not in with_lock and wanted[pid]
    ]  # fmt: skip
    return sorted(sessions, key=lambda session: -session.keeps)


def _count_kept(root: int, kept_by: Mapping[object, Sequence[object]]) -> int:
    kept: set[object] = {root}
    ahead: list[object] = [root]
    while ahead:
        for other in kept_by.get(ahead.pop(), ()):
            if other not in kept:
                kept.add(other)
                ahead.append(other)
    return sum(isinstance(each, int) for each in kept) - 1


@dataclass(frozen=True, slots=True)
class FencedLease:
    """The latest grant of one name in the lock table; all times by the server's clock.

    Attributes:
        name: the key's name in the table (:mod:`django_dblock.fencing.lease_name`).
        slot: 0 for a ``fenced_lock``, a leader and a writer; else the number of the permit, reader,
            partition or worker.
        state: ``held``; ``delayed``: the lease has ended, but its ``hold_at_least`` or
            ``lock_delay`` keeps it from being granted; or ``expired``: the lease was released or
            not renewed, and can be granted.
        token: the fencing token of the grant, or the token that an operator advanced it to.
        owner: the holder's host, process and thread, as readable text.
        age: seconds since the grant.
        renewed: seconds since the last renewal, or since the grant.
        remaining: seconds until the lease expires, if it is not renewed; negative if it has
            expired.
        lock_delay: seconds after the expiry for which the lease can't be granted.
        free_in: seconds until the lease can be granted to another holder, if it is not renewed;
            negative if it can be granted now.
        grants: how often the name was granted since its row was made.
        metadata: the metadata that the holder passed to ``fenced_lock``.
        waiting: the owners of the waiters in the queue, the first in front; a waiter without
            ``fair=True`` takes its place there after its third try. A waiter for a permit, or for
            a read-write lock, waits for its name: the first lease of that name has all of them.
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

    @property
    def key(self) -> str:
        """Return the readable name, without the suffix that names the kind in the table."""
        return meaning_of(self.name, self.slot).key

    @property
    def kind(self) -> str:
        """The lease's kind, as in the signals.

        ``fenced``, ``semaphore``, ``rwlock``, ``leader``; ``partition`` and ``worker`` are the
        leases of ``partitions``.
        """
        return meaning_of(self.name, self.slot).kind

    @property
    def role(self) -> Role:
        """What the lease is to its holder.

        ``lock``, ``permit``, ``writer``, ``reader``, ``leader``, ``partition`` or ``worker``.
        """
        return meaning_of(self.name, self.slot).role

    @property
    def title(self) -> str:
        """The key and the role as readable text, such as ``openai (permit 2)``."""
        return title_of(self.name, self.slot)


def fenced_leases(  # noqa: PLR0913 - what there is to choose
    using: str | None = None,
    *,
    name: str | Sequence[str] | None = None,
    expired: bool = False,
    pattern: str | None = None,
    limit: int | None = None,
    own_namespace: bool = False,
) -> list[FencedLease]:
    """Return every lease that can't be granted to another holder now, by name and slot.

    One statement; takes no locks. The list is a snapshot, by the server's clock.

    Args:
        using: the database alias, as in :func:`django_dblock.fenced_lock`.
        name: only leases with this name, or with one of these names, in the table.
        expired: also leases that can be granted now, after the others.
        pattern: only names that match, with or without the suffix of their kind; ``*`` matches any
            text, as in :mod:`fnmatch`.
        limit: at most so many of the expired leases, by name; all if None.
        own_namespace: if the project has namespaces, only the leases of the current one.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL.
        django.db.ProgrammingError: the lock table does not exist; run ``manage.py migrate``.
    """
    parameters = {
        "names": None if name is None else [name] if isinstance(name, str) else list(name),
        "expired": expired,
        "like": None if pattern is None else _like(pattern),
        "limit": limit,
        "namespace": conf.namespace if own_namespace and conf.has_namespaces else None,
    }
    leases = [
        FencedLease(*(*row, {} if metadata == "{}" else json.loads(metadata), tuple(waiting)))
        for *row, metadata, waiting in fetch(
            connections[alias_for(using)], sql.FENCED_LEASES, parameters
        )
    ]
    if pattern is None:
        return leases
    return [
        lease
        for lease in leases
        if fnmatchcase(lease.name, pattern) or fnmatchcase(lease.key, pattern)
    ]


@dataclass(frozen=True, slots=True)
class AwaitedLatch:
    """A latch that somebody waits for, so that it is closed; times by the server's clock.

    The database does not store how many parts the latch needs: that is an argument of the call.

    Attributes:
        name: the latch's name in the table (:mod:`django_dblock.fencing.lease_name`).
        parts: the number of parts that are done.
        latest: seconds since the latest part was done; None if no part is done.
        waiting: the owners of the waiters, the longest wait first. A waiter is in the queue after
            its third look.
    """

    name: str
    parts: int
    latest: float | None
    waiting: tuple[str, ...]


def awaited_latches(
    using: str | None = None,
    *,
    name: str | None = None,
    pattern: str | None = None,
    own_namespace: bool = False,
) -> list[AwaitedLatch]:
    """Return every latch that somebody waits for, by name. One statement; takes no locks.

    Args:
        using: the database alias, as in :class:`django_dblock.latch`.
        name: only the latch with this name in the table.
        pattern: only names that match, as in :mod:`fnmatch`.
        own_namespace: if the project has namespaces, only the latches of the current one.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL.
        django.db.ProgrammingError: a table does not exist; run ``manage.py migrate``.
    """
    namespace = conf.namespace if own_namespace and conf.has_namespaces else None
    parameters = {"name": name, "namespace": namespace}
    rows = fetch(connections[latch.alias_for(using)], sql.AWAITED_LATCHES, parameters)
    return [
        AwaitedLatch(text, parts, latest, tuple(waiting))
        for text, parts, latest, waiting in rows
        if pattern is None or fnmatchcase(text, pattern)
    ]


def _like(pattern: str) -> str:
    """Return a LIKE pattern that matches at least the texts of the ``fnmatch`` pattern."""
    if "[" in pattern:  # a set of characters; fnmatch decides afterwards
        pattern = f"{pattern.partition('[')[0]}*"
    for special in "\\%_":
        pattern = pattern.replace(special, f"\\{special}")
    return pattern.replace("*", "%").replace("?", "_")


def is_own_lease(name: str, namespace: str) -> bool:
    """Return whether a lease belongs to the namespace, by its name in the table.

    If the project has no namespaces, every lease does.
    """
    if not conf.has_namespaces:
        return True
    if not namespace:
        return "::" not in name
    return name.startswith(f"{namespace}::")


@dataclass(frozen=True, slots=True)
class UnfinishedRequest:
    """A request with an idempotency key that has no response yet; times by the server's clock.

    Attributes:
        id: the row's number, for ``dblock release --request``.
        state: ``abandoned``: the worker is lost, and a retry takes the request over, or is refused
            until an operator has resolved the request; ``free``: its run has ended without a
            response, and a retry continues after the last step; or ``leased``: a run is working.
        scope: the client that owns the key.
        key: the beginning of the key, never the whole; for a ``once_per`` job its name and period.
        method: the HTTP method; empty for ``run_once``.
        path: the URL's path; empty for ``run_once``.
        owner: the host, process and thread of the latest claim, as readable text.
        token: the fencing token of the latest claim.
        age: seconds since the request began.
        remaining: seconds until the lease ends, if it is not renewed; negative if it has ended;
            None if the request is free.
        expires_in: seconds until the key counts as new; negative if it does already; None while the
            request waits for an operator, without a limit.
        steps: the names of the recorded steps, in no order.
        namespace: ``DBLOCK_NAMESPACE`` when the request came, for example the tenant.
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
    namespace: str

    @property
    def name(self) -> str:
        """The scope and the masked key, which ``dblock list --name`` compares."""
        return f"{self.scope}:{self.key}"


MOST_COUNTED = 10_000
"""Requests without a response in one state that :func:`read_requests` counts at most."""


class Requests(NamedTuple):
    """Requests that have no response yet, and their numbers.

    Attributes:
        rows: the requests that were read, those without a worker first.
        idle: the number of requests without a worker, up to :data:`MOST_COUNTED` in each state.
        leased: the number of requests with a worker, up to :data:`MOST_COUNTED`.
    """

    rows: list[UnfinishedRequest]
    idle: int
    leased: int


def unfinished_requests(
    using: str | None = None, *, pk: int | None = None, limit: int | None = None
) -> list[UnfinishedRequest]:
    """Return the requests that have no response yet, those without a worker first.

    In ``mode="atomic"`` there are none: a request that has not ended has no row. One statement;
    takes no locks. The list is a snapshot, by the server's clock.

    Args:
        using: the database alias, as in :func:`django_dblock.idempotent`.
        pk: only this row.
        limit: at most so many requests in each state, the longest idle first; all if None.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL.
        django.db.ProgrammingError: the table does not exist; run ``manage.py migrate``.
    """
    return read_requests(using, pk=pk, limit=limit).rows


def read_requests(
    using: str | None = None, *, pk: int | None = None, limit: int | None = None
) -> Requests:
    """Return the requests of :func:`unfinished_requests`, and how many requests there are.

    The statement reads ``limit`` rows and counts :data:`MOST_COUNTED` index entries in each state
    at most, however many requests the table holds.
    """
    parameters = {"id": pk, "limit": limit, "most": MOST_COUNTED}
    rows = fetch(connections[store.alias_for(using)], idempotency_sql.UNFINISHED, parameters)
    requests = [
        UnfinishedRequest(
            *(*row[:3], shown_key(row[2], row[3]), *row[4:], tuple(sorted(steps)), namespace)
        )
        for *row, namespace, steps, _, _ in rows
    ]
    idle, leased = (rows[0][-2] or 0, rows[0][-1] or 0) if rows else (0, 0)
    return Requests(requests, idle, leased)


def count_unfinished_requests(using: str | None = None) -> dict[str, int]:
    """Return the number of requests without a response, by state. One statement, by an index."""
    connection = connections[store.alias_for(using)]
    return dict(fetch(connection, idempotency_sql.COUNT_UNFINISHED, {}))
