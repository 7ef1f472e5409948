"""``latch``: go on when all parts of some work are done."""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator

from asgiref.sync import sync_to_async
from django.db import connections
from django.db.transaction import TransactionManagementError

from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds
from django_dblock.core.application_name import name, named
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import connection_for, fetch, in_callers_transaction
from django_dblock.exceptions import LockTimeout
from django_dblock.fencing.lease_name import lease_name
from django_dblock.keys import KeyPart
from django_dblock.sql import coordination as sql

MONTH = 30 * 86_400
HOUR = 3_600
BATCH = 100
"""Latches that go in one commit of a purge."""

_SHORTEST, _LONGEST = 0.01, 0.5
"""Seconds between two looks."""


class latch:  # noqa: N801 - lower-case like the locks
    """Open when every part of some work has been committed.

    ::

        done = latch("import", run.pk, parties=10)
        with transaction.atomic():  # in each of ten workers
            load(chunk)
            done.count_down(chunk.number)
        done.wait(timeout=600)  # where the work goes on

    A part is a row, written in the part's own transaction. So a part counts once, however often it
    is repeated, and two parts never wait for each other.

    Guaranteed: the latch is open for others from the COMMIT of its last part, and not before; a
    part whose transaction rolled back has not counted. Nothing else keeps a count, so none can
    drift.

    Not guaranteed: that anybody repeats a part that failed. A latch that has been idle for 30 days
    is purged by ``dblock purge``, and is closed again then. Inside a transaction, ``done`` also
    sees the parts that this transaction has counted and not yet committed, and none of those that
    others have not: to act when the last part is done, use ``wait()``, or look in ``on_commit``.

    Args:
        key: the parts of the key, with the run's id in it: a latch is used once.
        parties: how many different parts there are, or their names.
        using: the database alias: that of the rows that the parts write.

    Raises:
        TypeError, ValueError: the key or the parties can't be one; before any SQL.

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
        """Note that the part is done, when the surrounding transaction commits. One statement.

        Args:
            part: the part's name or number, of the types that a key's part can have.

        Returns:
            Whether this call noted it; False if the part was done before.

        Raises:
            ValueError: the latch knows its parts, and this is none of them.
        """
        text = _text(part)
        if self._names is not None and text not in self._names:
            raise ValueError(f"{part!r} is none of the parts of {self!r}.")
        return bool(self._rows(sql.COUNT_DOWN, part=text))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are done, as text, in alphabetical order. One statement."""
        return tuple(part for (part,) in self._rows(sql.PARTS_DONE))

    @property
    def missing(self) -> int:
        """How many parts are not done yet. One statement."""
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

        Args:
            timeout: seconds to wait; 0 looks once, None waits indefinitely.

        Raises:
            LockTimeout: some parts were still missing.
            TransactionManagementError: a transaction is open: it would see its own parts as done,
                and could still be rolled back.
            ValueError: the timeout can't be one.
        """
        for delay in self._looks(timeout):
            time.sleep(delay)

    async def wait_async(self, *, timeout: float | None) -> None:  # noqa: ASYNC109 - as wait()
        """Do what :meth:`wait` does, from a coroutine."""
        looks = self._looks(timeout)
        while (delay := await sync_to_async(lambda: next(looks, None))()) is not None:  # noqa: ASYNC110
            await asyncio.sleep(delay)

    def reset(self) -> int:
        """Close the latch: forget its parts. Returns how many there were. One statement."""
        return len(self._rows(sql.RESET_LATCH))

    def _looks(self, timeout: float | None) -> Iterator[float]:
        """Look, and yield how long to sleep before the next look, until every part is done."""
        if not (timeout is None or is_seconds(timeout)):
            raise ValueError(
                f"timeout={timeout!r} is not a number of seconds from 0 (look once) to "
                f"{MAX_TIMEOUT:.0f}; None waits indefinitely."
            )
        connection = connections[_alias_of(self._using)]
        if in_callers_transaction(connection):
            raise TransactionManagementError(
                f"{self!r} can't be waited for in an open transaction: it would see its own parts "
                f"as done, and could still be rolled back. Wait outside transaction.atomic()."
            )
        started, delay = monotonic(), _SHORTEST
        while (missing := self.missing) > 0:
            waited = monotonic() - started
            if timeout is not None and waited >= timeout:
                raise LockTimeout(
                    keys=(self._key.parts,),
                    name=name(self._key),
                    using=connection.alias,
                    timeout=timeout,
                    waited=waited,
                    holder=f"{missing} of {self.parties} parts that are missing",
                )
            delay = random.uniform(_SHORTEST, min(_LONGEST, delay * 3))  # noqa: S311 - no secret
            yield delay if timeout is None else min(delay, timeout - waited)

    def _rows(self, statement: str, **parameters: str) -> list[tuple[str, ...]]:
        text = lease_name(self._key, conf.namespace)
        connection = connections[_alias_of(self._using)]
        return fetch(connection, statement, {"latch": text, **parameters})


def purge_latches(*, idle: float = MONTH, using: str | None = None) -> int:
    """Remove latches whose latest part was done ``idle`` seconds ago; return how many rows went.

    A latch goes as a whole. It goes in small commits.

    Args:
        idle: seconds since the latest part, at least 3,600; 30 days by default.
        using: the database alias, as in :class:`latch`.

    Raises:
        ValueError: ``idle`` is less than an hour.
    """
    return sum(purge_latches_in_batches(idle=idle, batch=BATCH, using=using))


def purge_latches_in_batches(*, idle: float, batch: int, using: str | None = None) -> Iterator[int]:
    """Do the same, one commit of at most ``batch`` latches at a time; yield the rows of each.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
    """
    _refuse_early(idle)
    connection = connections[_alias_of(using)]
    found = 1
    while found:
        [(found,)] = fetch(connection, sql.PURGE_LATCHES, {"idle": float(idle), "batch": batch})
        yield found


def count_idle_parts(*, idle: float = MONTH, using: str | None = None) -> int:
    """Return how many rows a purge of latches would remove now; it removes nothing.

    Raises:
        ValueError: ``idle`` is less than an hour; before any SQL.
    """
    _refuse_early(idle)
    connection = connections[_alias_of(using)]
    [(count,)] = fetch(connection, sql.COUNT_IDLE_PARTS, {"idle": float(idle)})
    return int(count)


def _refuse_early(idle: float) -> None:
    if not idle >= HOUR:
        raise ValueError(f"idle={idle!r}: after an hour at the earliest.")


def _alias_of(using: str | None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else where the router writes the table."""
    from django_dblock.models import LatchPart  # the app registry may come after the import

    return connection_for(using, LatchPart).alias


def _text(part: KeyPart) -> str:
    return lease_name(named((part,)), "")
