"""What the decorators for Celery and for django.tasks share."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction

from django_dblock.core import decorators as core
from django_dblock.exceptions import IdempotencyInProgress, LockTimeout
from django_dblock.fencing.lock import fenced_lock
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned
from django_dblock.idempotency.run_once import run_once
from django_dblock.keys import is_argument

P = ParamSpec("P")
R = TypeVar("R")


class OnceOptions(NamedTuple):
    """The options of ``run_once`` that a task can have."""

    mode: Mode
    ttl: Duration | None
    lease: Duration | None
    on_abandoned: OnAbandoned
    using: str | None


def locked(
    function: Callable[P, R],
    key: tuple[Any, ...],
    options: dict[str, Any],
    on_busy: Callable[[LockTimeout], R | None],
    *,
    pass_lease: bool,
) -> Callable[P, R | None]:
    """Return the function under a lease; ``on_busy`` says what becomes of a busy lock."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
        parts = [part(*args, **kwargs) if is_argument(part) else part for part in key]
        with ExitStack() as stack:
            try:
                lease = stack.enter_context(fenced_lock(*parts, **options))
            except LockTimeout as error:
                return on_busy(error)
            if pass_lease:
                kwargs["lease"] = lease
            result = function(*args, **kwargs)
            core.refuse_unfinished(result, function, "locked_task")
            return result

    return run


def once(
    function: Callable[P, R],
    prefix: str,
    key: Callable[..., Any],
    options: OnceOptions,
    on_busy: Callable[[IdempotencyInProgress], R],
) -> Callable[P, R]:
    """Return the function with its effects once for each key."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        own: IdempotencyInProgress | None = None

        def work(*handle: Any) -> Any:
            nonlocal own
            if handle:
                kwargs["run"] = handle[0]
            try:
                return function(*args, **kwargs)
            except IdempotencyInProgress as error:
                own = error
                raise

        parts = key(*args, **kwargs)
        parts = parts if isinstance(parts, tuple) else (parts,)
        name = f"{function.__module__}.{function.__qualname__}"
        try:
            result: R = run_once(prefix, name, *parts, work=work, **options._asdict())
        except IdempotencyInProgress as error:
            if error is own:  # something in the task is running elsewhere, not the task itself
                raise
            return on_busy(error)
        return result

    return run


def refuse_what_runs_later(function: Callable[..., Any], decorator: str, task: str) -> None:
    """Refuse what is a task already, and what runs later than its call.

    Raises:
        TypeError: the decorator would protect nothing.
    """
    name = getattr(function, "__qualname__", repr(function))
    if hasattr(function, "delay") or hasattr(function, "enqueue"):
        raise TypeError(f"{name} is a task already: put @{decorator} below @{task}.")
    if iscoroutinefunction(function):
        raise TypeError(f"{name} runs later than its call: @{decorator} would protect nothing.")
    core.refuse_what_runs_later(function, decorator)
