"""Errors of leases: one was not granted, or has ended."""

from typing import Any

from django.db.transaction import TransactionManagementError

from django_dblock.exceptions.base import LockError


class OpenTransaction(LockError, TransactionManagementError, RuntimeError):
    """A lease can't be acquired, renewed or released in an open transaction.

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

    A failover could lose the grant, so it does not count. The lease was released, or expires.
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
    """The lease can no longer be trusted: it expired, or another holder has it.

    Attributes:
        token: the fencing token of the lost grant.
        reason: what was noticed, as text.
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
