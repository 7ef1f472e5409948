"""Celery tasks under a lease, and tasks that have their effects once.

Put the decorator *below* ``@shared_task`` or ``@app.task``::

    @shared_task(acks_late=True)
    @locked_task("sync", lambda tenant: tenant, ttl=60)
    def sync(tenant): ...
"""

import functools
import logging
import random
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar

from django_dblock.contrib.task_wrappers import (
    OnceOptions,
    locked,
    once,
    refuse_what_runs_later,
)
from django_dblock.exceptions import IdempotencyInProgress, LockTimeout
from django_dblock.fencing.lock import fenced_lock
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned
from django_dblock.keys import KeyPart

try:
    from celery import current_task
    from celery.exceptions import Reject, Retry
except ImportError as error:
    raise ImportError("django_dblock.contrib.celery needs Celery: pip install celery") from error

logger = logging.getLogger("django_dblock.celery")

P = ParamSpec("P")
R = TypeVar("R")

Busy: TypeAlias = Literal["retry", "skip", "raise"]

_RETRY_ONCE: Final = 5.0
"""Seconds until a task looks again for the end of another run of the same work."""


def locked_task(
    *key: KeyPart | Callable[..., KeyPart],
    ttl: float,
    busy: Busy = "retry",
    retry_after: float | None = None,
    pass_lease: bool = False,
    **options: Any,
) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Run a task under a lease: at most one run at a time for each key.

    Guaranteed: as :class:`~django_dblock.fenced_lock`. The lease is released when the task ends, by
    returning, by an error, or by a soft time limit. When the worker is killed, or the task is
    revoked with ``terminate=True``, the lease expires after ``ttl``; a message that is delivered
    again meanwhile (``acks_late``, ``reject_on_worker_lost``) finds the lock busy and is retried
    until the lease has expired.

    Not guaranteed: that each message has its effect once, see :func:`once_task`; the order in which
    retried messages run.

    Args:
        key: the parts of the key; a callable is called with the task's arguments.
        ttl: seconds after which an unrenewed lease expires.
        busy: what a task does if the lock is held: ``"retry"`` later, until it is free, without
            occupying a worker; ``"skip"``: end with None; ``"raise"`` LockTimeout. Retries
            for a busy lock don't count for the task's ``max_retries`` and ``retry_backoff``.
        retry_after: seconds until the retry; half of the ttl, and a random part of it, by default.
        pass_lease: whether to call the task with ``lease=``, for ``lease.guard()``.
        options: those of ``fenced_lock``: ``timeout``, ``lock_delay``, ``using`` ….

    Raises:
        LockTimeout: the lock is held, with ``busy="raise"``; or with ``busy="retry"``, if the task
            is called as a function.
        LockLost: when the task ends, if the lease was lost before.
        OpenTransaction, NotReplicated, StandbyDatabase, UnsupportedDatabase: when the task is run,
            raised when ``fenced_lock`` raises them.
        TypeError, ValueError: at decoration: an argument is not valid. TypeError also if the
            function is async, a generator or a task already.

    Source: Celery's guide, "Ensuring a task is only executed one at a time", whose cache lock
    expires under a slow task and is deleted by it afterwards.
    """
    terms = {"ttl": ttl, **options}
    fenced_lock(*key, **terms)  # raises here, at decoration, if an argument is wrong
    if busy not in ("retry", "skip", "raise"):
        raise ValueError(f"busy={busy!r} is none of 'retry', 'skip', 'raise'.")

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        refuse_what_runs_later(function, "locked_task", "shared_task")

        def on_busy(error: LockTimeout) -> None:
            if busy == "raise":
                raise error
            if busy == "skip":
                logger.info("%s was skipped: %s", function.__qualname__, error)
                return
            _retry(error, _pause(ttl) if retry_after is None else retry_after)

        return locked(function, key, terms, on_busy, pass_lease=pass_lease)

    return decorate


def once_task(  # noqa: PLR0913 - all by name
    *,
    key: Callable[..., Any] | None = None,
    mode: Mode = "atomic",
    ttl: Duration | None = None,
    lease: Duration | None = None,
    on_abandoned: OnAbandoned = "takeover",
    using: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a task have its effects once, however often its message is delivered.

    Brokers deliver a message again after a lost acknowledgement, a visibility timeout or a killed
    worker. The task's id stays the same, and so does the key, so :func:`~django_dblock.run_once`
    returns the first result again. With ``key`` also *different* messages for the same work have
    one effect: a double click that enqueued twice.

    Guaranteed in atomic mode: the task's writes in the database and the record that it has run
    commit together, or not at all. So a worker that is killed leaves neither. In lease mode: as of
    ``run_once``; the task is called with the
    :class:`~django_dblock.idempotency.context.Handle` as ``run=``.

    Not guaranteed: anything after ``ttl``, 24 hours by default, which must be longer than the
    broker can take to deliver a message again.

    A message that arrives while the same work runs is retried a few seconds later. So is a message
    whose run has lost its lease to another run. These retries don't count for the task's
    ``max_retries`` and ``retry_backoff``.

    Args:
        key: called with the task's arguments, returns a key part or a tuple of parts; the task's
            id by default.
        mode: ``"atomic"``, or ``"lease"`` for work that calls the outside world.
        ttl: how long the result is kept, as of ``run_once``.
        lease: in lease mode, how long a run may be silent, as of ``run_once``.
        on_abandoned: what the repeat of a dead run does, as of ``run_once``.
        using: the database alias.

    Raises:
        TypeError: the task was called as a function and has no ``key``; or, at decoration, the
            function is async, a generator or a task already.
        UnstorableResponse: the result of the task is not JSON data, or is too large.
        IdempotencyInProgress: the same work is running, and the task is called as a function.
        IdempotencyError: or another error that :func:`~django_dblock.run_once` raises.
    """
    options = OnceOptions(mode, ttl, lease, on_abandoned, using)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        refuse_what_runs_later(function, "once_task", "shared_task")
        of_task = functools.partial(_task_id, function)
        return once(function, "celery", key or of_task, options, _retry_once)

    return decorate


def _pause(ttl: float) -> float:
    return random.uniform(ttl / 2, ttl)  # noqa: S311 - no secret


def _retry(error: Exception, seconds: float) -> NoReturn:
    """Send the task's message again, for later; where it was called as a function, raise the error.

    Raises:
        Retry: the message was sent, or Celery runs the task again at once (``apply()``).
        Reject: the message can't be sent, as of ``Task.retry()``.
    """
    if not current_task or current_task.request.called_directly:
        raise error
    request = current_task.request
    # Task.retry() counts each retry for max_retries and retry_backoff. A max_retries= that is
    # passed to it stays on the task object, where autoretry_for finds it for later messages.
    message = current_task.signature_from_request(
        request, countdown=seconds, retries=request.retries
    )
    if not request.is_eager:  # otherwise apply() runs the message, and counts
        try:
            message.apply_async()
        except Exception as failure:
            raise Reject(failure, requeue=False) from failure
    raise Retry(exc=error, when=seconds, is_eager=request.is_eager, sig=message) from error


def _retry_once(error: IdempotencyInProgress) -> NoReturn:
    _retry(error, _RETRY_ONCE)


def _task_id(function: Callable[..., Any], *_: object, **__: object) -> str:
    if not current_task or not current_task.request.id:
        raise TypeError(
            f"{function.__qualname__} was called as a function, so it has no task id. Pass "
            f"once_task(key=…) a function of the arguments, or call it with delay()."
        )
    return str(current_task.request.id)
