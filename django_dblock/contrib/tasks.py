"""For Django's own task framework, of Django 6.0 and later: a purge, and decorators for tasks.

Put the decorators *below* ``@task``, on functions of a module's top level::

    @task
    @locked_task("sync", lambda tenant: tenant, ttl=60)
    def sync(tenant): ...
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar

from django_dblock.contrib.task_wrappers import (
    OnceOptions,
    locked,
    once,
    refuse_what_runs_later,
)
from django_dblock.coordination.latch import purge_latches
from django_dblock.exceptions import IdempotencyInProgress, LockTimeout
from django_dblock.fencing.lock import fenced_lock
from django_dblock.fencing.operations import purge_fenced_locks
from django_dblock.idempotency.operations import purge_idempotency_keys
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned
from django_dblock.keys import KeyPart

try:
    from django.tasks import task
except ImportError as error:
    raise ImportError(
        "django_dblock.contrib.tasks needs django.tasks, which came with Django 6.0. Before that, "
        "call purge_idempotency_keys() in a task of your own, or run 'manage.py dblock purge'."
    ) from error


logger = logging.getLogger("django_dblock.tasks")

P = ParamSpec("P")
R = TypeVar("R")

Busy: TypeAlias = Literal["raise", "skip"]


@task
def purge(using: str | None = None) -> dict[str, Any]:
    """Remove expired requests, and the rows of locks that have been idle for 30 days.

    Enqueue it from a scheduler: ``purge.enqueue()``. The task may run in parallel with itself.

    Args:
        using: the database alias, as in ``idempotent``.

    Raises:
        TransactionManagementError: a transaction is open; nothing was removed.
        UnsupportedDatabase: the alias is not a PostgreSQL database.
    """
    return {
        "idempotency": purge_idempotency_keys(using=using),
        "fenced": purge_fenced_locks(using=using),
        "latches": purge_latches(using=using),
    }


def locked_task(
    *key: KeyPart | Callable[..., KeyPart],
    ttl: float,
    busy: Busy = "raise",
    pass_lease: bool = False,
    **options: Any,
) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Run a task under a lease: at most one run at a time for each key.

    Guaranteed, and not: as :class:`~django_dblock.fenced_lock`. The lease is released when the task
    ends; when its worker is killed, it expires after ``ttl``.

    django.tasks has no retries, so a busy lock either fails the task or skips it. To wait for the
    lock in the worker, pass ``timeout=``.

    Args:
        key: the parts of the key; a callable is called with the task's arguments.
        ttl: seconds after which an unrenewed lease expires.
        busy: what a task does if the lock is held: ``"raise"`` LockTimeout, which fails the task,
            or ``"skip"``: end with None.
        pass_lease: whether to call the task with ``lease=``, for ``lease.guard()``.
        options: those of ``fenced_lock``: ``timeout``, ``lock_delay``, ``using`` ….

    Raises:
        LockTimeout: with ``busy="raise"``, the lock was held.
        LockLost: when the task ends, if the lease was lost before.
        OpenTransaction, NotReplicated, StandbyDatabase, UnsupportedDatabase: when the task is run,
            raised when ``fenced_lock`` raises them.
        TypeError, ValueError: at decoration: an argument is not valid. TypeError also if the
            function is async, a generator or a task already.
    """
    terms = {"ttl": ttl, **options}
    fenced_lock(*key, **terms)  # what is wrong is said where it is written
    if busy not in ("raise", "skip"):
        raise ValueError(f"busy={busy!r} is none of 'raise', 'skip'.")

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        refuse_what_runs_later(function, "locked_task", "task")

        def on_busy(error: LockTimeout) -> None:
            if busy == "raise":
                raise error
            logger.info("%s was skipped: %s", function.__qualname__, error)

        return locked(function, key, terms, on_busy, pass_lease=pass_lease)

    return decorate


def once_task(  # noqa: PLR0913 - all by name
    *,
    key: Callable[..., Any],
    mode: Mode = "atomic",
    ttl: Duration | None = None,
    lease: Duration | None = None,
    on_abandoned: OnAbandoned = "takeover",
    using: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a task have its effects once for each key, however often it is enqueued or run.

    Guaranteed in atomic mode: the task's writes in the database and the record that it has run
    commit together, or not at all. In lease mode: as of :func:`~django_dblock.run_once`; the task
    is called with the :class:`~django_dblock.idempotency.context.Handle` as ``run=``.

    Args:
        key: called with the task's arguments, returns a key part or a tuple of parts. With
            ``@task(takes_context=True)`` it gets the context first: ``context.task_result.id``
            is the same whenever this task is run again.
        mode: ``"atomic"``, or ``"lease"`` for work that calls the outside world.
        ttl: how long the result is kept, as of ``run_once``.
        lease: in lease mode, how long a run may be silent, as of ``run_once``.
        on_abandoned: what the repeat of a dead run does, as of ``run_once``.
        using: the database alias.

    Raises:
        IdempotencyInProgress: the same work is running now. The task fails, and the other run
            continues.
        TypeError: at decoration: the function is async, a generator or a task already.
        IdempotencyError: or another error that :func:`~django_dblock.run_once` raises.
    """
    options = OnceOptions(mode, ttl, lease, on_abandoned, using)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        refuse_what_runs_later(function, "once_task", "task")
        return once(function, "django.tasks", key, options, _fail)

    return decorate


def _fail(error: IdempotencyInProgress) -> NoReturn:
    raise error
