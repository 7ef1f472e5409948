"""Run a function again after a conflict."""

import inspect
import random
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, transaction

from django_dblock.core.decorators import refuse_unfinished, refuse_what_runs_later
from django_dblock.exceptions import (
    LockDeadlock,
    RetryInTransaction,
    StaleObject,
    StaleObjects,
)
from django_dblock.signals import conflict_retried

P = ParamSpec("P")
R = TypeVar("R")

RETRIED_STATES = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: PostgreSQL manual, 13.5 and appendix A."""


@overload
def retry_on_conflict(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def retry_on_conflict(
    *, attempts: int = 5, base: float = 0.01, cap: float = 1.0, using: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def retry_on_conflict(
    function: Callable[P, R] | None = None,
    /,
    *,
    attempts: int = 5,
    base: float = 0.01,
    cap: float = 1.0,
    using: str | None = None,
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a function in a transaction of its own, and again from its start after a conflict.

    A conflict is a :class:`StaleObject` (or ``StaleObjects``), a serialization failure (SQLSTATE
    40001, also at COMMIT) or a deadlock (40P01, :class:`LockDeadlock`). Each run begins a new
    transaction, so it reads the rows as they are then. Between two runs it sleeps a random time: at
    most ``base`` seconds, then twice, four times, eight times ``base``, up to ``cap`` ("full
    jitter").

    Guarantees: what a failed run did in the database is rolled back before the next begins. An
    error of an ``on_commit`` hook is raised at once, as the run is committed by then.

    Does not guarantee: success, as the last error is raised after the last attempt. Effects outside
    the database happen once per run; use ``transaction.on_commit`` for them. Objects that were read
    outside the function are not read again, so read them inside.

    Args:
        function: the function, where the decorator is used without arguments.
        attempts: the number of runs at most.
        base: the longest first sleep, in seconds.
        cap: the longest sleep, in seconds.
        using: the alias of the transaction; ``default`` if not given, as in ``atomic()``.

    Raises:
        RetryInTransaction: called inside an open transaction, where a retry can't see new data.
            The block of a TestCase does not count.
        TypeError: the function is async, a class, a generator function, or made of one
            (``@contextmanager``); or it returned a coroutine or a generator. No transaction spans
            an await or a yield.
        ValueError: at decoration: ``attempts``, ``base`` or ``cap`` is out of range.

    Source: PostgreSQL manual, 13.5 Serialization Failure Handling; M. Brooker, Exponential Backoff
    And Jitter (AWS Architecture Blog, 2015).
    """
    if function is not None:
        return retry_on_conflict()(function)
    if type(attempts) is not int or attempts < 1:
        raise ValueError(f"attempts= is a whole number above 0, not {attempts!r}.")
    if not 0 <= base <= cap:
        raise ValueError(f"base= and cap= are seconds, 0 <= base <= cap; not {base!r} and {cap!r}.")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_what_spans(function)

        def run(alias: str, committed: list[str], /, *args: P.args, **kwargs: P.kwargs) -> R:
            with transaction.atomic(using=alias):
                _note_commit(alias, committed)
                result = function(*args, **kwargs)
                refuse_unfinished(result, function, "retry_on_conflict")
            return result

        @wraps(function)
        def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
            alias = using or DEFAULT_DB_ALIAS
            _refuse_inside(function, alias)
            for attempt in range(1, attempts):
                committed: list[str] = []
                try:
                    return run(alias, committed, *args, **kwargs)
                except (StaleObject, StaleObjects, LockDeadlock, OperationalError) as error:
                    if committed or not is_conflict(error):
                        raise
                    # Not for secrets: it only keeps two losers from meeting again.
                    delay = random.uniform(0, min(cap, base * 2 ** min(attempt - 1, 60)))  # noqa: S311
                    conflict_retried.send_robust(
                        function, error=error, attempt=attempt, delay=delay
                    )
                time.sleep(delay)
            return run(alias, [], *args, **kwargs)

        return retrying

    return decorate


def _note_commit(alias: str, committed: list[str]) -> None:
    """Add the alias after COMMIT, before other hooks run, whose errors may look like conflicts."""
    if len(connections[alias].atomic_blocks) == 1:  # not in a TestCase, which counts its hooks
        transaction.on_commit(lambda: committed.append(alias), using=alias)


def is_conflict(error: Exception) -> bool:
    """Return whether running the transaction again may succeed."""
    if isinstance(error, StaleObject | StaleObjects | LockDeadlock):
        return True
    return getattr(error.__cause__, "sqlstate", None) in RETRIED_STATES


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))  # a partial has none


def _refuse_what_spans(function: Callable[..., object]) -> None:
    refuse_what_runs_later(function, "retry_on_conflict")
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"@retry_on_conflict can't guard {_name(function)}: no transaction spans an await. Put "
            f"the work into a plain function, guard that, and call it with sync_to_async()."
        )


def _refuse_inside(function: Callable[..., object], alias: str) -> None:
    connection: Any = connections[alias]
    blocks = connection.atomic_blocks
    own = [block for block in blocks if not block._from_testcase]
    if own or (not blocks and not connection.get_autocommit()):
        raise RetryInTransaction(function=_name(function), using=alias)
