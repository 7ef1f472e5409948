"""Processes that stop at each statement and COMMIT, so that they can be ended there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connection

from tests.helpers.processes import process


@contextmanager
def stopping(channel: Any) -> Iterator[None]:
    """Stop before each statement, and before and after each COMMIT, until told that it is the last.

    Tells what comes next, and the backend, as a tuple.
    """
    connection.ensure_connection()
    going_on = True

    def stop(what: str) -> None:
        nonlocal going_on
        if going_on:
            channel.send((what, connection.connection.info.backend_pid))
            going_on = channel.receive()

    def execute(run: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        stop(sql)
        return run(sql, parameters, many, context)

    original = connection._commit

    def commit() -> None:
        stop("before COMMIT")
        original()
        stop("after COMMIT")

    connection._commit = commit
    with connection.execute_wrapper(execute):
        yield


def crash_at(stops: int, how: str, observer: Any, target: Callable[..., Any], *more: Any) -> Any:
    """Run the target in a process, and end it at its n-th stop; return what would have come next.

    None if the target ended before: it has no such stop.

    Args:
        stops: how many stops it passes.
        how: ``SIGKILL``, or else its backend is terminated.
        observer: a connection.
        target: called with a channel, on which ``stopping`` tells of its stops.
        more: further arguments of the target.
    """
    with process(target, *more) as child:
        for _ in range(stops):
            if not isinstance(child.receive(), tuple):
                return None
            child.send(True)
        next_one = child.receive()
        if not isinstance(next_one, tuple):
            return None
        what, backend = next_one
        if how == "SIGKILL":
            child.kill()
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
        else:
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
            child.send(False)
            if what != "after COMMIT":
                with pytest.raises(OperationalError):
                    child.receive()
        return what
