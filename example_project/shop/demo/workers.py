"""Workers as processes, and the one of them that is frozen and thawed.

Nothing here is ordered by sleeping. The workers are held up where they read, by a lock on that
table; who is seen to wait there has the lease, and is stopped before the answer comes.
"""

import datetime as dt
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

from django.core.management.base import CommandError
from django.db import connection, transaction
from psycopg import sql

from shop.demo.children import child
from shop.demo.database import address_as

PATIENCE = 30.0

# In a transaction, pg_stat_activity stays as it was first seen.
_LOOK_AGAIN = "SELECT pg_stat_clear_snapshot()"
_HELD_UP = """
SELECT application_name FROM pg_stat_activity
WHERE application_name = ANY (%s) AND pg_backend_pid() = ANY (pg_blocking_pids(pid))
"""
_AT_REST = """
SELECT bool_and(state = 'idle') FROM pg_stat_activity WHERE application_name = %s
"""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of ``manage.py``; the server sees its name."""

    name: str
    process: "subprocess.Popen[bytes]"
    output: IO[bytes]

    def ended(self) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise CommandError(f"{self.name} does not end: {self.said}") from None

    @property
    def said(self) -> str:
        """The last line it has written."""
        self.output.seek(0)
        return (self.output.read().decode().strip().splitlines() or ["nothing"])[-1]

    def freeze(self) -> None:
        """Stop it, and wait until it is stopped."""
        self.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise CommandError(f"{self.name} ended too early: {self.said}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def crew(
    size: int, day: dt.date, database_url: str, env: Mapping[str, str]
) -> Iterator[list[Worker]]:
    """Let so many workers settle the day, each as soon as the others let it."""
    names = [f"worker-{number}" for number in range(1, size + 1)]
    command = ("settle", f"--date={day}", f"--wait={PATIENCE}")
    with _started(dict.fromkeys(names, command), database_url, env) as workers:
        yield workers


@contextmanager
def draining(
    names: Sequence[str], database_url: str, env: Mapping[str, str]
) -> Iterator[list[Worker]]:
    """Let workers of these names drain the outbox until it is empty."""
    commands = {name: ("drain_outbox", f"--name={name}", "--until-empty") for name in names}
    with _started(commands, database_url, env) as workers:
        yield workers


@contextmanager
def syncing(
    names: Sequence[str], database_url: str, env: Mapping[str, str]
) -> Iterator[list[Worker]]:
    """Let workers of these names keep the stock in step with the warehouse, one at a time."""
    commands = {name: ("sync_stock", f"--name={name}") for name in names}
    with _started(commands, database_url, env) as workers:
        yield workers


@contextmanager
def _started(
    commands: Mapping[str, Sequence[str]], database_url: str, env: Mapping[str, str]
) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = []
        for name, command in commands.items():
            output = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(
                child(
                    *("manage", *command),
                    env={**env, "DATABASE_URL": address_as(name, database_url)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
            workers.append(Worker(name, process, output))
        # A stopped process can't watch its own lifeline.
        stack.enter_context(child("lifeline", *(str(each.process.pid) for each in workers)))
        yield workers


@contextmanager
def nobody_reads(table: str) -> Iterator[None]:
    """Hold up whoever reads this table of the shop, for the time of the block."""
    close = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(close)
        yield


def first_held_up(workers: list[Worker]) -> Worker:
    """Wait until :func:`nobody_reads`, which is around this, holds up one of them; return it."""

    def look() -> list[str]:
        if any(each.process.poll() is not None for each in workers):
            said = [each.said for each in workers]
            raise CommandError(f"A worker ended before it had read: {said}")
        with connection.cursor() as cursor:
            cursor.execute(_LOOK_AGAIN)
            cursor.execute(_HELD_UP, [[each.name for each in workers]])
            return [name for (name,) in cursor.fetchall()]

    [name, *_] = until(look, "No worker came to read.")
    [found] = [each for each in workers if each.name == name]
    return found


def until_answered(worker: Worker) -> None:
    """Wait until the server has answered what the worker, which is frozen, had asked."""

    def look() -> list[bool]:
        with connection.cursor() as cursor:
            cursor.execute(_AT_REST, [worker.name])
            return [True for (at_rest,) in cursor.fetchall() if at_rest]

    until(look, f"{worker.name} is not answered.")


def until(look: Callable[[], list[Any]], otherwise: str) -> list[Any]:
    """Look again and again, until something is found; return that."""
    over = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > over:
            raise CommandError(otherwise)
        time.sleep(0.01)  # between two looks, not instead of one
    return found
