"""``dblock terminate``: end the connection of a backend, after a look at what it holds."""

from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.advisory.operations import terminate_backend
from django_dblock.cli import console
from django_dblock.cli.console import confirm, operator_name, printable
from django_dblock.cli.list import ADVISORY_COLUMNS, BLOCKER_COLUMNS, advisory_row, blocker_row
from django_dblock.exceptions import TerminationRefused
from django_dblock.inspect import AdvisoryLock, BlockingSession, lock_waits


def add_arguments(parser: CommandParser) -> None:
    """Add the backend, and the option that skips the prompt."""
    parser.add_argument(
        "pid", metavar="PID", type=int, help="the backend, as 'dblock list' shows it"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show what the backend holds and waits for, ask, and end it if it is still the same one.

    Raises:
        CommandError: it has nothing to do with a lock, is another one by now, or may not be ended;
            or the prompt was declined.
    """
    pid, using = options["pid"], options["using"]
    locks, blockers = _sessions(pid, using)
    if locks:
        console.write_table(stdout, ADVISORY_COLUMNS, list(map(advisory_row, locks)))
    else:
        console.write_table(stdout, BLOCKER_COLUMNS, list(map(blocker_row, blockers)))
    backend_start = (locks or blockers)[0].backend_start
    if backend_start is None:
        raise CommandError(
            f"Backend {pid} was not ended: this role may not see when its connection began, so "
            f"another backend could have the same pid by the time you confirm. Connect as the "
            f"backend's own role, or 'GRANT pg_signal_backend, pg_read_all_stats' to the role of "
            f"this alias."
        )
    if not options["yes"]:
        confirm(f"End backend {pid}? Its uncommitted changes are rolled back.")
    try:
        ended = terminate_backend(
            pid,
            backend_start=backend_start,
            by=operator_name(),
            using=using,
            blocking=not locks,
        )
    except TerminationRefused as error:
        raise CommandError(printable(str(error))) from error
    if not ended:
        raise CommandError(
            f"Backend {pid} has already ended, or holds no lock any more. Nothing was done. "
            f"'dblock list' shows the present holders."
        )
    stdout.write(
        f"Backend {pid} is being ended: its transaction is rolled back, and the next waiter gets "
        f"the lock. The client is not stopped, and may connect again."
    )


def _sessions(pid: int, using: str | None) -> tuple[list[AdvisoryLock], list[BlockingSession]]:
    waits = lock_waits(using)
    locks = [lock for lock in waits.locks if lock.pid == pid]
    blockers = [session for session in waits.blockers if session.pid == pid]
    if not locks and not blockers:
        raise CommandError(
            f"Backend {pid} neither holds nor waits for an advisory lock of this database, nor "
            f"blocks a session that does, so it is not ended. 'dblock list' shows those "
            f"that do. To end a lease, use 'dblock release'."
        )
    return locks, blockers
