"""Errors of leases: one was not granted, or has ended."""

from typing import Any

from django.db.transaction import TransactionManagementError

from django_dblock.exceptions.base import LockError


class OpenTransaction(LockError, TransactionManagementError, RuntimeError):
    """A lease can't be acquired, renewed or released in an open transaction.

    Other connections would not see the change before the commit, and a rollback would undo it. The
    error is also a RuntimeError, because Django's ``atomic(durable=True)`` raises that for the same
    reason.
    """

    def __init__(
        self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str, act: str
    ) -> None:
        super().__init__(
            f"{name} can't be {act} inside an open transaction on database {using!r}: other "
            f"connections would not see that before the commit, and a rollback would undo it. "
            f"Enter fenced_lock() outside transaction.atomic() (ATOMIC_REQUESTS opens one around "
            f"each view: see transaction.non_atomic_requests), and use lock.guard() for "
            f"transactions inside it.",
            keys=keys,
            name=name,
            using=using,
        )


class NotReplicated(LockError):
    """The lease was written, but the wait for the synchronous standby was cut short.

    A failover could lose the grant, so it does not count. The lease was released, or expires.
    """

    def __init__(self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str) -> None:
        super().__init__(
            f"{name} on database {using!r} was not taken: no synchronous standby confirmed it, so "
            f"a failover could lose the grant. Try again when replication works, and find out "
            f"what cancels the wait (pg_cancel_backend(), a client that gave up).",
            keys=keys,
            name=name,
            using=using,
        )


class LockLost(LockError):
    """The lease can no longer be trusted: it expired, or another holder has it.

    Attributes:
        token: the fencing token of the lost grant.
        reason: why the lease counts as lost, as text.
    """

    def __init__(
        self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str, token: int, reason: str
    ) -> None:
        super().__init__(
            f"{name} on database {using!r} (token {token}) is lost: {reason}. Stop the work that "
            f"the lock protected, and write nothing more. Writes without lock.guard() or "
            f"save_fenced() may conflict with the new holder's. Allow a longer ttl= if pauses are "
            f"longer.",
            keys=keys,
            name=name,
            using=using,
        )
        self.token = token
        self.reason = reason


class StaleFence(LockLost):
    """A fenced write was refused because the lease is stale. Nothing was written.

    A lease is stale if it is not held any more, or if a newer holder has written or claimed the
    row. The write is refused, too, if the row was deleted, or if a row in another database was not
    claimed with this lease.

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
