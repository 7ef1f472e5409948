"""``latch``: a wait until every part of some work is committed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError
from django.dispatch import Signal

from django_dblock import signals
from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds
from django_dblock.core.application_name import name, named
from django_dblock.core.cancellation import to_its_end
from django_dblock.core.connection import connection_for, fetch, in_callers_transaction
from django_dblock.exceptions import LockTimeout
from django_dblock.fencing import store
from django_dblock.fencing.acquire import Attempt, Demand
from django_dblock.fencing.lease_name import lease_name
from django_dblock.fencing.store import Grant, Look, Place, Refusal, Wish
from django_dblock.keys import KeyPart
from django_dblock.sql import coordination as sql

MONTH = 30 * 86_400
HOUR = 3_600
BATCH = 100
"""The number of latches that one commit of a purge removes."""


class latch:  # noqa: N801 - lower-case like the locks
    """A latch, which opens when every part of some work has been committed.

    ::

        done = latch("import", run.pk, parties=10)
        with transaction.atomic():  # in each of ten workers
            load(chunk)
            done.count_down(chunk.number)
        done.wait(timeout=600)  # where the work goes on

    A part is a row, written in the part's own transaction. So a part counts once, however often the
    part is repeated, and two parts never wait for each other.

    Guaranteed:

    - A part counts if, and only if, the transaction that commits the part's work commits: the row
      is the proof, and the rows are the only count.
    - Other connections see the latch open from the COMMIT of the last part, and not before.

    Not guaranteed: that a part that failed is repeated. A latch that has been idle for 30 days is
    purged by ``dblock purge``, and is closed from then on.

    Inside a transaction, ``done`` counts the uncommitted parts of that transaction, and no
    uncommitted parts of other transactions. To act when the last part is done, use ``wait()``, or
    read ``done`` in ``on_commit``.

    Args:
        key: the parts of the key. Include the id of the run, because a latch is used once.
        parties: the number of different parts, or the names of the parts; the same in every call.
            The database does not store the number. So a call with a smaller number than the other
            calls sees the latch open earlier, and refuses further parts.
        using: the database alias; ``DBLOCK_DATABASE``, else where the router writes the parts. The
            alias must be that of the rows that the parts write.

    Raises:
        TypeError, ValueError: a part of the key, or ``parties``, is not valid; before any SQL.
        UnsupportedDatabase: when the latch is used: the database is not PostgreSQL.

    Source: Java's ``CountDownLatch``, with the count replaced by the set of parts.
    """

    def __init__(
        self, *key: KeyPart, parties: int | Iterable[KeyPart], using: str | None = None
    ) -> None:
        self._key = named(key)
        self._names: dict[str, KeyPart] | None = None
        if isinstance(parties, bool):
            raise TypeError("parties must be a number of parts, or their names, not bool.")
        if isinstance(parties, int):
            self.parties = parties
        elif isinstance(parties, str | bytes):
            raise TypeError("parties must be a number of parts, or a list of their names.")
        else:
            self._names = {_text(part): part for part in parties}
            self.parties = len(self._names)
        if self.parties < 1:
            raise ValueError(f"parties={parties!r}: a latch needs at least one part.")
        self._using = using

    def __repr__(self) -> str:
        return f"<latch {name(self._key)} parties={self.parties}>"

    def count_down(self, part: KeyPart) -> bool:
        """Record that a part is done, as of the commit of the open transaction. One statement.

        If a waiter is in the queue, one more statement after the COMMIT wakes all waiters, provided
        that the latch is open then. That statement is sent once for each transaction.

        If ``parties`` is a number, the statement also counts the other parts, which takes a few
        milliseconds at 10,000 parts. If ``parties`` is a list of names, nothing is counted.

        Args:
            part: the part's name or number, of the types that a key's part can have.

        Returns:
            Whether this call recorded the part; False if the part was done before.

        Raises:
            ValueError: nothing was written, because ``part`` is not in the list ``parties``, or
                because as many other parts as ``parties`` are done already. Two surplus parts that
                are counted at the same time, or one in a SERIALIZABLE transaction, go unnoticed.
            TypeError: ``part`` is not of a type that a key's part can have.
            UnsupportedDatabase: the database is not PostgreSQL.
        """
        text = _text(part)
        if self._names is not None and text not in self._names:
            raise ValueError(f"{part!r} is none of the parts of {self!r}.")
        most = self.parties if self._names is None else None
        rows = self._rows(sql.COUNT_DOWN, part=text, most=most)
        for outcome, schema in rows:
            if outcome == "surplus":
                raise ValueError(
                    f"{part!r} is one part too many for {self!r}: other parts have opened it "
                    f"already. Give the same, right number of parties in every call."
                )
            if schema is not None:  # a waiter is in the queue
                self._wake_at_commit(schema)
        return bool(rows)

    def _wake_at_commit(self, schema: str) -> None:
        connection: Any = connections[alias_for(self._using)]  # the stubs lack run_on_commit
        # In manual transaction management no hook runs after COMMIT: the waiters poll.
        if not (connection.in_atomic_block or connection.get_autocommit()):
            return
        # At the COMMIT, the search path may be another tenant's.
        wake_up = _WakeUp(store.in_schema(sql.WAKE_LATCH, schema), self._parameters, connection)
        # One wake-up serves all parts of a transaction. If its hook belongs to a savepoint that can
        # be rolled back without this part, the same wake-up gets a second hook; it is sent once.
        for savepoints, hook, *_ in reversed(connection.run_on_commit):
            known = getattr(hook, "__self__", None)
            if known == wake_up and not known.is_sent:
                if savepoints <= set(connection.savepoint_ids):
                    return
                wake_up = known
                break
        transaction.on_commit(wake_up.send, using=connection.alias, robust=True)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are done, as text, in alphabetical order. One statement."""
        return tuple(part for (part,) in self._rows(sql.PARTS_DONE))

    @property
    def missing(self) -> int:
        """The number of parts that are not done yet. One statement."""
        if self._names is None:
            [(count,)] = self._rows(sql.COUNT_PARTS)
            return max(0, self.parties - int(count))
        return len(self.waiting_for)

    @property
    def waiting_for(self) -> tuple[KeyPart, ...]:
        """The parts that are not done yet, if ``parties`` named them. One statement.

        Raises:
            TypeError: ``parties`` was a number.
        """
        if self._names is None:
            raise TypeError("A latch that got a number of parties doesn't know their names.")
        done = set(self.parts)
        return tuple(part for text, part in self._names.items() if text not in done)

    @property
    def done(self) -> bool:
        """Whether every part is done. One statement."""
        return self.missing == 0

    def wait(self, *, timeout: float | None) -> None:
        """Return when every part is done.

        A waiter is woken after the COMMIT of the last part. Besides, each waiter reads the parts
        every two seconds. A waiter that can't be woken, for example behind a pooler in transaction
        mode, reads the parts every half second or more often. A part that was counted before the
        waiter came, and is committed later, wakes nobody: the waiter's next reading finds the part.

        Args:
            timeout: seconds to wait; 0 looks once, None waits indefinitely.

        Raises:
            LockTimeout: some parts were missing until the timeout.
            TransactionManagementError: a transaction is open, in which the transaction's own parts
                would count although they could still be rolled back.
            StandbyDatabase: the server is a standby, where a waiter can't queue.
            UnsupportedDatabase: the database is not PostgreSQL.
            ValueError: ``timeout`` is neither None nor a number of seconds from 0.
        """
        attempt = self._attempt(timeout)
        try:
            while not self._is_open(attempt):
                attempt.pause()
        finally:
            attempt.close()

    async def wait_async(self, *, timeout: float | None) -> None:  # noqa: ASYNC109 - as wait()
        """Wait as :meth:`wait` does, from a coroutine, with the same errors."""
        attempt = await sync_to_async(self._attempt)(timeout)
        try:
            while not await sync_to_async(self._is_open)(attempt):
                await attempt.apause()
        finally:
            _, cancelled = await to_its_end(sync_to_async(attempt.close)())
            if cancelled is not None:
                raise cancelled

    def reset(self) -> int:
        """Close the latch: delete its parts, and return their number. One statement."""
        return len(self._rows(sql.RESET_LATCH))

    def _is_open(self, attempt: Attempt) -> bool:
        try:
            success = attempt.once()
        except LockTimeout as error:
            self._send(signals.lock_timeout, attempt.place, waited=error.waited)
            raise
        if success is not None:
            waited = success.waited
            self._send(signals.lock_acquired, attempt.place, waited=waited, took=waited)
        return success is not None

    @staticmethod
    def _send(signal: Signal, place: Place, **more: float) -> None:
        if signal.receivers:
            signal.send_robust(latch, kind="latch", shared=False, **place.facts, **more)

    def _attempt(self, timeout: float | None) -> Attempt:
        """Begin to wait. The attempt succeeds when all parts are done, and holds nothing."""
        if not (timeout is None or is_seconds(timeout)):
            raise ValueError(
                f"timeout={timeout!r} is not a number of seconds from 0 (look once) to "
                f"{MAX_TIMEOUT:.0f}; None waits indefinitely."
            )
        connection = connections[alias_for(self._using)]
        if in_callers_transaction(connection):
            raise TransactionManagementError(
                f"{self!r} can't be waited for in an open transaction: the transaction's own parts "
                f"would count although they could still be rolled back. Wait outside "
                f"transaction.atomic()."
            )
        parameters = self._parameters
        place = Place(self._key, parameters["queue"], connection.alias, kind="latch")
        more = {**parameters, "names": self._names and list(self._names)}

        def acquire(place: Place, _: Wish, ticket: int | None) -> Grant | Refusal:
            row = {**more, "ticket": ticket}
            [(missing,)] = store.run(place, "waited for", sql.LOOK_AT_LATCH, row)
            return _OPEN if missing <= 0 else self._refusal(missing)

        def look(place: Place, ticket: store.Ticket, patience: float | None) -> Look:
            row = {**more, "ticket": ticket.id, "owner": ticket.owner, "patience": patience}
            [(queued, missing)] = store.run(place, "waited for", sql.STAY_AT_LATCH, row)
            return Look(queued, 0, self._refusal(missing), max(missing, 0))

        return _Wait(place, _NO_TERMS, timeout, Demand(acquire, look))

    def _refusal(self, missing: int) -> Refusal:
        return Refusal(inf, 0, f"{missing} of {self.parties} parts that are missing")

    @property
    def _parameters(self) -> dict[str, Any]:
        text = lease_name(self._key, conf.namespace)
        return {"latch": text, "queue": f"{text}~latch", "parties": self.parties}

    def _rows(self, statement: str, **parameters: str | int | None) -> list[tuple[Any, ...]]:
        connection = connections[alias_for(self._using)]
        return fetch(connection, statement, {**self._parameters, **parameters})


@dataclass
class _WakeUp:
    """The wake-up of a latch's waiters after one transaction, which is sent once."""

    statement: str
    parameters: dict[str, Any]
    connection: Any
    is_sent: bool = field(default=False, compare=False)

    def send(self) -> None:
        """Wake the waiters, if the latch is open. An on_commit hook."""
        if not self.is_sent:
            self.is_sent = True
            fetch(self.connection, self.statement, self.parameters)


class _Wait(Attempt):
    """One wait for a latch. A latch has no holder, so the error speaks of parts."""

    def time_is_up(self, waited: float, *, note: str = "") -> LockTimeout:
        """Return the LockTimeout that says how many parts are missing."""
        error = super().time_is_up(waited, note=note)
        message = (
            f"The latch {error.name} on database {error.using!r} is kept closed by {error.holder}: "
            f"gave up after {waited:.3f} s (timeout={error.timeout} s). Parts that are done stay "
            f"done, so you can wait again. latch.waiting_for returns the missing parts, if parties "
            f"is a list of names."
        )
        error.args = (message,)
        return error


_OPEN = Grant(0, datetime.max.replace(tzinfo=UTC))
_NO_TERMS = Wish(0.0, 0.0, "{}", in_turn=False)


def purge_latches(*, idle: float = MONTH, using: str | None = None) -> int:
    """Remove latches whose latest part was done ``idle`` seconds ago; return the number of rows.

    All rows of a latch are removed in one commit, together with at most 99 other latches. Call the
    function outside a transaction: inside one, all rows stay locked until the commit removes them.

    Args:
        idle: seconds since the latest part, at least 3,600; 30 days by default.
        using: the database alias, as in :class:`latch`.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
        UnsupportedDatabase: the database is not PostgreSQL.
    """
    return sum(purge_latches_in_batches(idle=idle, batch=BATCH, using=using))


def purge_latches_in_batches(*, idle: float, batch: int, using: str | None = None) -> Iterator[int]:
    """Purge latches, at most ``batch`` in each commit; yield each commit's number of rows.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
    """
    _refuse_early(idle)
    connection = connections[alias_for(using)]
    found = 1
    while found:
        [(found,)] = fetch(connection, sql.PURGE_LATCHES, {"idle": float(idle), "batch": batch})
        yield found


def count_idle_parts(*, idle: float = MONTH, using: str | None = None) -> int:
    """Return how many rows a purge of latches would remove now; remove nothing.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
    """
    _refuse_early(idle)
    connection = connections[alias_for(using)]
    [(count,)] = fetch(connection, sql.COUNT_IDLE_PARTS, {"idle": float(idle)})
    return int(count)


def _refuse_early(idle: float) -> None:
    if not idle >= HOUR:
        raise ValueError(f"idle={idle!r}: after an hour at the earliest.")


def alias_for(using: str | None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else where the router writes the table."""
    from django_dblock.models import LatchPart  # the app registry may come after the import

    return connection_for(using, LatchPart).alias


def _text(part: KeyPart) -> str:
    return lease_name(named((part,)), "")
