"""A lock that a second, real connection holds."""

from contextlib import suppress
from types import TracebackType
from typing import Self

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.advisory.acquire import Request, lock
from django_dblock.core.application_name import name, named
from django_dblock.core.connection import connection_for, fetch
from django_dblock.keys import KeyPart, to_pg_locks
from django_dblock.sql import inspect as sql
from django_dblock.testing.leaks import until


class hold_lock:  # noqa: N801 - as advisory_lock, a context manager in lower case
    """Hold the advisory lock of a key on another connection, so that code under test finds it busy.

    ::

        with hold_lock("inventory", "sku-1"), self.assertRaises(LockTimeout):
            sell("sku-1")

    It works in a ``TestCase``, too: other connections see a lock at once, unlike a row that
    is not committed.

    Guaranteed: until the block ends or :meth:`release` is called, a transaction of a connection of
    its own holds the lock. After that the lock is free at once.

    Not guaranteed: anything about a ``fenced_lock`` of the same key, which is another lock. Take
    that lock with :class:`django_dblock.testing.hold_lease`, or with ``fenced_lock`` in the test.

    Args:
        key: the parts of the key, as in :class:`django_dblock.advisory_lock`.
        shared: hold the lock in shared mode.
        using: the database alias, as in :class:`django_dblock.advisory_lock`.
        timeout: seconds to wait if the lock is busy.

    Raises:
        LockTimeout: on entering, if another connection holds the lock for longer than timeout.
        RuntimeError: on entering, if the test's own transaction holds the lock, so that the wait
            would never end; or if the test may not use the database.
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
        """Acquire the lock. Entering twice acquires it once."""
        if self._request is None:
            other = connection_for(self._using).copy()
            other.inc_thread_sharing()  # another thread may release it
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
        """Release the lock; it is free when this returns. Calling it again does nothing."""
        if self._request is not None:
            request, self._request = self._request, None
            _end(request.connection)

    @property
    def pid(self) -> int:
        """The pid of the backend that holds the lock, as ``pg_locks`` shows it.

        Raises:
            RuntimeError: the lock is not held.
        """
        driver = self._held().connection.connection
        return int(driver.info.backend_pid)

    def waiters(self) -> list[int]:
        """Return the pids of the backends that wait for the lock now, first come first.

        Raises:
            RuntimeError: the lock is not held.
        """
        return [pid for pid, granted, _ in _backends(self._held()) if not granted]

    def until_waited_for(self, count: int = 1, *, within: float = 30.0) -> list[int]:
        """Return as soon as ``count`` backends wait for the lock. Use it instead of ``sleep()``.

        Raises:
            AssertionError: fewer backends wait after ``within`` seconds.
            RuntimeError: the lock is not held.
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
    parameters = {"classid": classid, "objid": objid}
    rows: list[tuple[int, bool, bool]] = fetch(request.connection, sql.BACKENDS, parameters)
    return rows


def _refuse_own(request: Request) -> None:
    """Raise if this thread holds the lock: it can't end its transaction while it waits."""
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
    """Roll back and close; closing alone would free the lock a moment later."""
    with suppress(Error):
        connection.rollback()
    connection.close()
