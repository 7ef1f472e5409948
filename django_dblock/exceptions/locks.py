"""A lock was not taken, or would protect nothing."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError

from django_dblock.exceptions.base import DblockError, LockError


class LockTimeout(LockError, TimeoutError):
    """Another holder had the lock until the timeout. Nothing was locked.

    The surrounding transaction, if there is one, is usable.

    Attributes:
        timeout: the seconds that were allowed; None if only the server's ``lock_timeout`` applied.
        waited: the seconds that were spent.
        holder: who held the lock when the error was raised, in words: an advisory lock's backend
            with its program and label, or a lease's owner. "another transaction" if nobody held the
            lock any more, or the server could not be asked.
        holder_pid: the backend that held an advisory lock; None if it is unknown, and for a lease.
    """

    def __init__(  # noqa: PLR0913 - its data
        self,
        *,
        keys: tuple[tuple[Any, ...], ...],
        name: str,
        using: str,
        timeout: float | None,
        waited: float,
        holder: str = "another transaction",
    ) -> None:
        self.timeout = timeout
        self.waited = waited
        super().__init__("", keys=keys, name=name, using=using)
        self.name_holder(holder, None)

    def name_holder(self, holder: str, pid: int | None) -> None:
        """Set the holder in the message and in the attributes."""
        self.holder = holder
        self.holder_pid = pid
        limit = "the server's lock_timeout"
        if self.timeout is not None:
            limit = f"timeout={self.timeout:g} s"
        message = (
            f"{self.name} on database {self.using!r} is locked by {holder}: gave up after "
            f"{self.waited:.3f} s ({limit}). Nothing was locked. Try again later, allow a longer "
            f"timeout=, or see who holds it with 'manage.py dblock list'."
        )
        self.args = (message,)


class LockDeadlock(LockError):
    """PostgreSQL found a deadlock and ended this transaction's wait. Nothing was locked.

    The surrounding transaction is usable, but other transactions still wait for the locks that it
    already holds.
    """

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"Waiting for {name} on database {using!r} would never have ended: this "
            f"transaction and another one wait for each other's locks. End this transaction and "
            f"run it again from its start. To avoid deadlocks, take all keys at once with "
            f"advisory_locks([...]), and take a lock exclusively at once rather than shared first.",
            keys=keys,
            name=name,
            using=using,
        )


class LockTableFull(LockError):
    """The server has no room for another lock. Nothing was locked.

    With a single key inside the caller's transaction, that transaction can only be rolled back: no
    savepoint was set, and Django marks the transaction for rollback. With several keys it is
    usable.

    The table is shared by the whole cluster and holds about ``max_locks_per_transaction *
    (max_connections + max_prepared_transactions)`` locks.
    """

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"No room for {name} in the server's lock table (database {using!r}). Raise "
            f"max_locks_per_transaction in postgresql.conf (needs a restart), or lock fewer keys "
            f"in one transaction; 'manage.py dblock list' shows the holders.",
            keys=keys,
            name=name,
            using=using,
        )


class UnsafeIsolation(LockError, ImproperlyConfigured):
    """The transaction's snapshot can be older than the lock, so the lock would not protect it.

    Attributes:
        isolation: the transaction's isolation level, as the server reports it.
    """

    def __init__(
        self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str, isolation: str
    ) -> None:
        super().__init__(
            f"{name} was not locked: the transaction on database {using!r} runs at "
            f"{isolation.upper()}, where every statement sees the snapshot of the first one, so "
            f"what is read under the lock can be older than the lock. Run it at READ COMMITTED, "
            f"or set DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True if the lock is the transaction's "
            f"first statement and you retry serialization failures.",
            keys=keys,
            name=name,
            using=using,
        )
        self.isolation = isolation


class StandbyDatabase(LockError):
    """The alias leads to a standby, whose locks the primary never sees."""

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"{name} was not locked: database {using!r} is a standby (in recovery), and a lock "
            f"there protects nothing that is written on the primary. Pass using= with the alias "
            f"of the primary, or set DBLOCK_DATABASE.",
            keys=keys,
            name=name,
            using=using,
        )


class TerminationRefused(DblockError, PermissionError):
    """The role may not end this backend, or may not see which connection it is. Nothing was ended.

    Attributes:
        pid: the backend.
        using: the database alias.
        reason: the reason of the refusal, as text.
    """

    def __init__(self, *, pid: int, using: str, reason: str) -> None:
        super().__init__(
            f"Backend {pid} on database {using!r} was not ended: {reason}. Connect as the "
            f"backend's role, or 'GRANT pg_signal_backend, pg_read_all_stats' to the role of this "
            f"alias; only a superuser may end a superuser's backend."
        )
        self.pid = pid
        self.using = using
        self.reason = reason


class UnsupportedDatabase(DblockError, NotSupportedError):
    """The alias leads to a database that is not PostgreSQL, or has other advisory locks.

    CockroachDB is refused by its name: before 26.3 its advisory locks do nothing, and from 26.3 on
    ``ROLLBACK TO SAVEPOINT`` does not free them.

    Attributes:
        using: the database alias.
        engine: the name of the engine.
    """

    def __init__(self, *, using: str, engine: str) -> None:
        super().__init__(
            f"django_dblock needs PostgreSQL, but database {using!r} is {engine}, whose advisory "
            f"locks are missing or are not PostgreSQL's. Pass using= with the alias of a "
            f"PostgreSQL database, or set DBLOCK_DATABASE."
        )
        self.using = using
        self.engine = engine
