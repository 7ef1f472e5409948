"""Every error of the package, under one base. Each carries its data and says what to do next."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError
from django.db.transaction import TransactionManagementError


class DblockError(Exception):
    """Base of all errors raised by django_dblock. Picklable, attributes included."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[DblockError], args: tuple[Any, ...], data: dict[str, Any]) -> DblockError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(data)
    return error


class LockError(DblockError):
    """A lock was not taken.

    Attributes:
        keys: the keys that were asked for, each a tuple of parts as the caller gave them.
        name: the same for people, ``inventory:sku-1``.
        using: the database alias.
    """

    def __init__(
        self, message: str, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str
    ) -> None:
        super().__init__(message)
        self.keys = keys
        self.name = name
        self.using = using

    @property
    def key(self) -> tuple[Any, ...] | None:
        """The key, where exactly one was asked for; else None."""
        return self.keys[0] if len(self.keys) == 1 else None


class LockTimeout(LockError, TimeoutError):
    """The lock was still held by somebody else when the time was up. Nothing was locked.

    The surrounding transaction, if there was one, is usable.

    Attributes:
        timeout: the time that was allowed, in seconds; None where only the server's own
            ``lock_timeout`` applied.
        waited: the time that was spent, in seconds.
        holder: who has it, as far as is known.
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
        limit = "the server's lock_timeout" if timeout is None else f"timeout={timeout:g} s"
        super().__init__(
            f"{name} on database {using!r} is locked by {holder}: gave up after "
            f"{waited:.3f} s ({limit}). Nothing was locked. Try again later, allow a longer "
            f"timeout=, or see who holds it with 'manage.py dblock list'.",
            keys=keys,
            name=name,
            using=using,
        )
        self.timeout = timeout
        self.waited = waited
        self.holder = holder


class LockDeadlock(LockError):
    """PostgreSQL found a deadlock and chose this transaction to give way. Nothing was locked.

    The surrounding transaction is usable, but the others go on waiting for what it already holds.
    """

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"Waiting for {name} on database {using!r} would never have ended: this transaction "
            f"and another hold what the other waits for. End this transaction and run it again "
            f"from its start; to rule it out, take all keys at once with advisory_locks([...]), "
            f"and take a lock exclusively at once rather than shared first.",
            keys=keys,
            name=name,
            using=using,
        )


class LockTableFull(LockError):
    """The server has no room for another lock. Nothing was locked.

    With a single key inside somebody's transaction, that transaction can only be rolled back: no
    savepoint was paid for, and Django is told. With several keys it is usable.

    The table is shared by the whole cluster and holds about ``max_locks_per_transaction *
    (max_connections + max_prepared_transactions)`` locks.
    """

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"No room for {name} in the server's lock table (database {using!r}). Raise "
            f"max_locks_per_transaction in postgresql.conf (needs a restart), or lock fewer keys "
            f"in one transaction; 'manage.py dblock list' shows who fills it.",
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


class UnsupportedDatabase(DblockError, NotSupportedError):
    """The alias leads to something that is not PostgreSQL, or only looks like it.

    Attributes:
        using: the database alias.
        engine: what was found there.
    """

    def __init__(self, *, using: str, engine: str) -> None:
        super().__init__(
            f"django_dblock needs PostgreSQL, but database {using!r} is {engine}, whose advisory "
            f"locks are missing or do nothing. Pass using= with the alias of a PostgreSQL "
            f"database, or set DBLOCK_DATABASE."
        )
        self.using = using
        self.engine = engine


class OpenTransaction(LockError, TransactionManagementError, RuntimeError):
    """A lease can't be taken, renewed or given back in an open transaction.

    Others would not see it before the commit, and a rollback would undo it. A RuntimeError, too,
    because that is what Django's ``atomic(durable=True)`` raises for the same reason.
    """

    def __init__(
        self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str, act: str
    ) -> None:
        super().__init__(
            f"{name} can't be {act} inside an open transaction on database {using!r}: nobody would "
            f"see it before the commit, and a rollback would undo it. Enter fenced_lock() outside "
            f"transaction.atomic() (ATOMIC_REQUESTS opens one around each view: see "
            f"transaction.non_atomic_requests), and use lock.guard() for transactions inside it.",
            keys=keys,
            name=name,
            using=using,
        )


class NotReplicated(LockError):
    """The lease was written, but the wait for the synchronous standby was cut short.

    A failover could lose it, so it does not count as taken. It was given back, or expires.
    """

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"{name} on database {using!r} was not taken: no synchronous standby confirmed it, so "
            f"a failover could hand it to somebody else. Try again when replication works, and "
            f"look for who cancels the wait (pg_cancel_backend(), a client that gave up).",
            keys=keys,
            name=name,
            using=using,
        )


class LockLost(LockError):
    """The lease can't be trusted any longer: it ran out, or somebody else has it.

    Attributes:
        token: the fencing token that it had.
        reason: what was noticed, in words.
    """

    def __init__(
        self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str, token: int, reason: str
    ) -> None:
        super().__init__(
            f"{name} on database {using!r} (token {token}) is lost: {reason}. Stop what the lock "
            f"protected and don't write; what was written without lock.guard() or save_fenced() "
            f"may have met a newer holder's. For longer pauses allow a longer ttl=.",
            keys=keys,
            name=name,
            using=using,
        )
        self.token = token
        self.reason = reason


class StaleFence(LockLost):
    """A fenced write was refused, and nothing was written: a newer holder was here.

    Attributes:
        model: the label of the model, ``shop.account``.
        pk: the row's primary key; None for a QuerySet.
    """

    def __init__(  # noqa: PLR0913 - its data
        self,
        *,
        keys: tuple[tuple[Any, ...], ...],
        name: str,
        using: str,
        token: int,
        reason: str,
        model: str,
        pk: Any = None,
    ) -> None:
        row = model if pk is None else f"{model} {pk!r}"
        super().__init__(
            keys=keys,
            name=name,
            using=using,
            token=token,
            reason=f"the write to {row} was refused, {reason}",
        )
        self.model = model
        self.pk = pk


class StaleObject(DblockError):
    """The row was written, or deleted, by somebody else since it was read. Nothing was written.

    The surrounding transaction, if there was one, is usable, and the instance keeps its version.

    Attributes:
        instance: the object that was not written.
        model: the label of its model, ``shop.Product``.
        pk: its primary key.
        expected: the version the row should have had; None where it only had to be there.
        actual: the version it has; None where the row is gone.
        using: the database alias.
        rolled_back: what the instance carries was written in a transaction that was rolled back.
    """

    def __init__(
        self,
        *,
        instance: Any,
        expected: int | None,
        actual: int | None,
        using: str,
        rolled_back: bool = False,
    ) -> None:
        model, pk = instance._meta.label, instance.pk  # noqa: SLF001 - Django's public Meta API
        row = f"{model} {pk!r} on database {using!r}"
        if rolled_back:
            now = "isn't there" if actual is None else f"has version {actual}"
            what = (
                f"{row} was not written: version {expected} in memory comes from a transaction "
                f"that was rolled back (or whose COMMIT got no answer), and the row {now}."
            )
        elif actual is None:
            what = f"{row} was not written: it has been deleted."
        else:
            what = (
                f"{row} was not written: it has version {actual}, not {expected}, so it was "
                f"changed since it was read."
            )
        super().__init__(
            f"{what} Read it again (refresh_from_db()) and decide anew, or run the whole "
            f"function again with @retry_on_conflict."
        )
        self.instance = instance
        self.model = model
        self.pk = pk
        self.expected = expected
        self.actual = actual
        self.using = using
        self.rolled_back = rolled_back

    @property
    def deleted(self) -> bool:
        """Whether the row is gone."""
        return self.actual is None


class StaleObjects(DblockError):
    """Some of many rows were written by somebody else since they were read. Nothing was written.

    Attributes:
        model: the label of their model.
        pks: the primary keys of the stale objects.
        using: the database alias.
    """

    def __init__(self, *, model: str, pks: list[Any], using: str) -> None:
        shown = ", ".join(repr(pk) for pk in pks[:10]) + (", …" if len(pks) > 10 else "")  # noqa: PLR2004
        super().__init__(
            f"{len(pks)} of the {model} rows on database {using!r} changed, or went, since they "
            f"were read: {shown}. Nothing was written. Read them again, or use "
            f'on_conflict="report" to write the others.'
        )
        self.model = model
        self.pks = pks
        self.using = using


class MissingVersion(DblockError, ValueError):
    """The instance carries no version that its other values were read with. Nothing was sent.

    Attributes:
        model: the label of its model.
        pk: its primary key.
        adding: it was made here and never read.
    """

    def __init__(self, *, model: str, pk: Any, adding: bool) -> None:
        why = (
            "it was never read from the database. Use save() to insert it, or pass expected= "
            "with the version that was seen"
            if adding
            else "its version was deferred, read apart from its other values, or not returned by "
            "a save that did not compare. Read the whole object, version included, or pass "
            "expected= with the version that was seen"
        )
        super().__init__(f"{model} {pk!r} has no version to compare: {why}.")
        self.model = model
        self.pk = pk
        self.adding = adding


class RetryInTransaction(DblockError, RuntimeError):
    """A function with ``@retry_on_conflict`` was called inside a transaction. It was not run.

    Attributes:
        function: its qualified name.
        using: the database alias.
    """

    def __init__(self, *, function: str, using: str) -> None:
        super().__init__(
            f"{function} can't be retried inside an open transaction on database {using!r}: it "
            f"would go on with what that transaction has read. Put @retry_on_conflict around the "
            f"outermost transaction; for a view under ATOMIC_REQUESTS, add "
            f"@transaction.non_atomic_requests."
        )
        self.function = function
        self.using = using
