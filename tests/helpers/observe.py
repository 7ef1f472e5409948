"""Look at the server until it is in the state a test needs: a race is ordered by seeing."""

import time
from collections.abc import Callable
from typing import Any

import psycopg

LIMIT = 90
"""Seconds after which a state counts as never reached; on a busy machine much takes long."""


def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Ask again and again until the answer is true; return it."""
    deadline = time.monotonic() + limit
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)  # between two looks, not instead of one


def until_blocked(observer: psycopg.Connection[Any], waiters: int = 1) -> None:
    """Wait until so many backends of this database are really blocked on an advisory lock."""
    until(lambda: len(waiting(observer)) >= waiters, f"{waiters} blocked backend(s)")


def waiting(observer: psycopg.Connection[Any]) -> list[int]:
    """The backends of this database that wait for an advisory lock."""
    return [pid for pid, granted in locks(observer) if not granted]


def locks(observer: psycopg.Connection[Any]) -> list[tuple[int, bool]]:
    """All advisory locks of this database: backend, and whether it has it."""
    return observer.execute(
        "SELECT pid, granted FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY pid, granted"
    ).fetchall()
