"""A transaction-scoped advisory lock on a second connection, held while something else runs.

``dblock migrate`` and ``dblock run --advisory`` hold one. The lock needs no table and no session
state, so it works before the first migration and behind PgBouncer in transaction mode; the server
frees it when this process or its machine dies.

The transaction that holds the lock has no snapshot, so it does not keep ``CREATE INDEX
CONCURRENTLY`` waiting. A backend that *waits* for an advisory lock does have one: it would block
such a statement of the holder's, and that statement would wait for the waiter indefinitely, which
no deadlock detector sees. Therefore waiters try again and again, and hold no transaction meanwhile.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psycopg
from django.db import Error
from psycopg import IsolationLevel
from psycopg.pq import ExecStatus

from django_dblock.advisory.acquire import Request, try_lock
from django_dblock.core.application_name import NamedKey, name, without_labels
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import connection_for, dedicated, drop_if_dead, fetch
from django_dblock.exceptions import LockLost, LockTimeout
from django_dblock.keys import to_pg_locks
from django_dblock.sql import advisory as sql

TTL = 30.0
"""Seconds for which a successful check of the connection is trusted."""

_LOOK_EVERY = TTL / 6
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class AdvisoryHold:
    """An advisory lock on a connection of its own, from ``acquire`` or ``with`` until ``release``.

    Guaranteed: one holder at a time; the server frees the lock when the connection ends.

    Not guaranteed: that the holder notices at once when the connection is lost (a restarted server
    frees the lock). :attr:`remaining` asks the server every five seconds.

    Args:
        key: the key.
        using: the database alias.
        timeout: seconds to wait; None waits indefinitely.
        on_wait: called once with a description of the holder, if the lock is not free at once.

    Attributes:
        name: the key in words.
        using: the database alias.

    Raises:
        UnsupportedDatabase: the alias is not PostgreSQL.
    """

    def __init__(
        self,
        key: NamedKey,
        *,
        using: str | None,
        timeout: float | None,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name(key)
        self.using = connection_for(using).alias
        self._timeout = timeout
        self._on_wait = on_wait
        self._connection = dedicated(self.using)
        self._request = Request.of((key,), shared=False, connection=self._connection)
        self._confirmed_at = 0.0
        self._asked_at: float | None = None
        self._lost: str | None = None

    def __enter__(self) -> Self:
        try:
            self.acquire()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, or wait for it by trying again.

        Raises:
            LockTimeout: another session held the lock until the timeout.
            StandbyDatabase: the server is a standby.
            UnsupportedDatabase: the server has no real advisory locks.
        """
        started, pause, announced = monotonic(), _SHORTEST_PAUSE, False
        while not self._try():
            waited = monotonic() - started
            if self._timeout is not None and waited >= self._timeout:
                raise LockTimeout(
                    **self._request.facts, timeout=self._timeout, waited=waited,
                    holder=self._holder(),
                )  # fmt: skip
            if not announced:
                announced = True
                self._on_wait(self._holder())
            left = float("inf") if self._timeout is None else self._timeout - waited
            time.sleep(min(pause * random.uniform(0.5, 1), left))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._confirmed_at = monotonic()

    def _try(self) -> bool:
        connection = self._connection
        drop_if_dead(connection)
        connection.ensure_connection()
        # Above READ COMMITTED a transaction keeps the snapshot of its first statement.
        connection.connection.isolation_level = IsolationLevel.READ_COMMITTED
        connection.set_autocommit(False)
        locked = False
        try:
            fetch(connection, sql.NO_TIMEOUTS, {})
            locked = try_lock(self._request)
        finally:
            if not locked:
                with suppress(Error):
                    connection.rollback()
                    connection.set_autocommit(True)
        return locked

    def _holder(self) -> str:
        """Return who holds the lock, in words."""
        classid, objid = to_pg_locks(self._request.ids[0])
        rows = fetch(self._connection, sql.HOLDER, {"classid": classid, "objid": objid})
        if not rows:
            return "another transaction, which has just ended"
        pid, application_name, client, age = rows[0]
        program = without_labels(application_name or "") or "unknown program"
        since = "" if age is None else f", since {age:.0f} s"
        return f"backend {pid} ({program}, {client or 'local'}{since})"

    @property
    def remaining(self) -> float:
        """Seconds for which the lock can be trusted; 0 if the lock was lost.

        Asks the server every five seconds, and does not wait for the answer: a silent server must
        not keep the caller from ending the command in time.
        """
        if self._lost is None:
            try:
                self._look()
            except psycopg.Error as error:
                self._lose(error)
        return 0.0 if self._lost else self._confirmed_at + TTL - monotonic()

    def _look(self) -> None:
        driver = self._connection.connection.pgconn  # psycopg's own execute() waits for the server
        if self._asked_at is None:
            if monotonic() - self._confirmed_at < _LOOK_EVERY:
                return
            self._asked_at = monotonic()
            driver.send_query(b"SELECT 1")
        driver.consume_input()
        while not driver.is_busy():
            result = driver.get_result()
            if result is None:  # the end of the results
                self._confirmed_at, self._asked_at = self._asked_at, None
                return
            if result.status != ExecStatus.TUPLES_OK:
                raise psycopg.OperationalError(driver.error_message.decode(errors="replace"))

    def _lose(self, error: Exception) -> None:
        self._lost = f"its connection was lost: {' '.join(str(error).split())}"

    @property
    def lost(self) -> bool:
        """Whether the connection was lost, which frees the lock."""
        return self._lost is not None

    def loss(self) -> LockLost:
        """Return a LockLost with the reason why the lock was lost."""
        facts: dict[str, Any] = self._request.facts
        return LockLost(**facts, token=0, reason=self._lost or "")

    def look_now(self) -> bool:
        """Ask the server now, and wait for its answer; return whether the lock is still held."""
        try:
            fetch(self._connection, "SELECT 1", {})
        except Error as error:
            self._lose(error)
        return not self.lost

    def release(self) -> None:
        """Free the lock, and close the connection."""
        with suppress(Error):
            self._connection.close()
