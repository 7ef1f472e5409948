"""``dblock purge`` as a task for Django's own task framework, of Django 6.0 and later."""

from typing import Any

from django_dblock.coordination.latch import purge_latches
from django_dblock.fencing.operations import purge_fenced_locks
from django_dblock.idempotency.operations import purge_idempotency_keys

try:
    from django.tasks import task
except ImportError as error:
    raise ImportError(
        "django_dblock.contrib.tasks needs django.tasks, which came with Django 6.0. Before that, "
        "call purge_idempotency_keys() in a task of your own, or run 'manage.py dblock purge'."
    ) from error


@task
def purge(using: str | None = None) -> dict[str, Any]:
    """Remove expired requests, and the rows of locks that nobody has had for 30 days.

    Enqueue it from a scheduler: ``purge.enqueue()``. As safe to run in parallel as the functions
    that it calls, and as they, not in an open transaction.

    Args:
        using: the database alias, as in ``idempotent``.
    """
    return {
        "idempotency": purge_idempotency_keys(using=using),
        "fenced": purge_fenced_locks(using=using),
        "latches": purge_latches(using=using),
    }
