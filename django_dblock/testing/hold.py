"""A lock that somebody else has: held by a second, real connection."""

from contextlib import suppress
from types import TracebackType
from typing import Self

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.advisory.acquire import Request, lock
from django_dblock.core.application_name import name, named
from django_dblock.core.connection import connection_for
from django_dblock.keys import KeyPart, to_pg_locks
from django_dblock.sql import inspect as sql
from django_dblock.testing.leaks import until


class hold_lock:  # noqa: N801 - as advisory_lock, a context manager in lower case
    """Let another connection hold the lock of a key, so that code under test finds it busy.

    ::

        with hold_lock("inventory", "sku-1"), self.assertRaises(LockTimeout):
            sell("sku-1")

    Locks, unlike rows, are seen by everybody at once, so it works in a ``TestCase``, too.

    Guaranteed: from entering until the block is left, or :meth:`release` is called, the key is
    locked by a transaction of a connection of its own; after that it is free at once.

    Not guaranteed: anything about a ``fenced_lock`` of the same key, which is another lock; take
    that with ``fenced_lock`` in the test itself, since it is not re-entrant.

    Args:
        key: the parts of the key, as in :class:`django_dblock.advisory_lock`.
        shared: hold it so that other shared holders get in.
        using: the database alias, likewise.
        timeout: seconds to wait for it, if somebody has it.

    Raises:
        LockTimeout: on entering: somebody else has it.
        RuntimeError: on entering: the test's own transaction has it, so waiting would never end;
            or the test may not use the database.
    """

    def __init__(
        self,
        *key: KeyPart,
        shared: bool = False,
        using: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._key = named(key)
        self._shared = shared
        self._using = using
        self._timeout = timeout
        self._request: Request | None = None

    def __enter__(self) -> Self:
        """Take it; what is held already stays so."""
        if self._request is None:
            other = connection_for(self._using).copy()
            other.inc_thread_sharing()  # a timer, or the code under test, may be who lets it go
            request = Request.of((self._key,), shared=self._shared, connection=other)
            try:
                other.set_autocommit(False)
                _refuse_own(request)
                lock(request, timeout=self._timeout, joined=False)
            except BaseException:
                _end(other)
                raise
            self._request = request
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let it go; when this returns it is free. Once more is no error."""
        if self._request is not None:
            request, self._request = self._request, None
            _end(request.connection)

    @property
    def pid(self) -> int:
        """The backend that holds it, as ``pg_locks`` shows it."""
        driver = self._held().connection.connection
        return int(driver.info.backend_pid)

    def waiters(self) -> list[int]:
        """Return the backends that wait for it just now, in the order they came."""
        return [pid for pid, granted, _ in _backends(self._held()) if not granted]

    def until_waited_for(self, count: int = 1, *, within: float = 30.0) -> list[int]:
        """Return once so many others really wait: what a test looks at in place of ``sleep()``.

        Raises:
            AssertionError: they don't, after ``within`` seconds.
        """
        found = until(self.waiters, lambda pids: len(pids) >= count, within)
        if len(found) < count:
            raise AssertionError(
                f"{name(self._key)}: after {within:g} s {len(found)} connection(s) wait for it, "
                f"not {count}."
            )
        return found

    def _held(self) -> Request:
        if self._request is None:
            raise RuntimeError(f"{name(self._key)} is not held: enter the block first.")
        return self._request


def _backends(request: Request) -> list[tuple[int, bool, bool]]:
    [number] = request.ids
    classid, objid = to_pg_locks(number)
    with request.connection.cursor() as cursor:
        cursor.execute(sql.BACKENDS, {"classid": classid, "objid": objid})
        rows: list[tuple[int, bool, bool]] = cursor.fetchall()
    return rows


def _refuse_own(request: Request) -> None:
    """Raise if this very thread has the lock: it can't end a transaction while it waits."""
    own = {
        each.connection.info.backend_pid
        for each in connections.all(initialized_only=True)
        if each.vendor == "postgresql" and each.connection is not None
    }
    in_the_way = {
        pid
        for pid, granted, shared in _backends(request)
        if granted and not (shared and request.shared)
    }
    if own & in_the_way:
        raise RuntimeError(
            f"{request.facts['name']} is locked by this test's own transaction, in which a lock "
            f"lasts until the end of the test. Hold it before the code under test takes it; or "
            f"use TransactionTestCase (@pytest.mark.django_db(transaction=True))."
        )


def _end(connection: BaseDatabaseWrapper) -> None:
    """Roll back, and wait for the answer: a connection that is only closed frees a moment later."""
    with suppress(Error):
        connection.rollback()
    connection.close()
