"""The transaction of a fenced write, and what a refusal is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import models, transaction

from django_dblock import signals
from django_dblock.exceptions import LockLost, StaleFence
from django_dblock.fencing.lease import Lease


def is_beside(lock: Lease, using: str) -> bool:
    """Whether the rows are where the lock table is, so that one transaction spans both."""
    return lock.using == using


@contextmanager
def fenced_write(
    lock: Lease, using: str, model: type[models.Model], pk: Any = None
) -> Iterator[None]:
    """Run the write in a transaction, guarded where that can be; tell of a refusal.

    In an open transaction it is a savepoint, so that a refusal leaves that one usable.
    """
    try:
        lock.check()
        with transaction.atomic(using=using):
            if is_beside(lock, using):
                with lock.guard():
                    yield
            else:
                yield
    except LockLost as error:
        refusal = (
            error
            if isinstance(error, StaleFence)
            else refused(lock, model, f"because the lock is lost: {error.reason}", pk)
        )
        if signals.stale_write_refused.receivers:
            signals.stale_write_refused.send_robust(
                model,
                kind="fenced",
                keys=refusal.keys,
                name=refusal.name,
                using=refusal.using,
                token=refusal.token,
                model=refusal.model,
                pk=refusal.pk,
                reason=refusal.reason,
            )
        if refusal is error:
            raise
        raise refusal from error


def refused(lock: Lease, model: type[models.Model], reason: str, pk: Any = None) -> StaleFence:
    """Return the error for a write that was refused."""
    return StaleFence(
        keys=(lock.key,),
        name=lock.name,
        using=lock.using,
        token=lock.token,
        reason=reason,
        model=model._meta.label_lower,  # noqa: SLF001 - Django's documented API
        pk=pk,
    )
