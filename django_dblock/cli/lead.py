"""``dblock lead``: run a command while this process leads, and stand by otherwise."""

import os
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper
from django.db import InterfaceError, OperationalError

from django_dblock.cli.console import FAILED, LOST, SIGNALLED, USAGE
from django_dblock.cli.key import KEY_SYNTAX, parse_key

if TYPE_CHECKING:
    from django_dblock.cli.supervisor import Inbox
    from django_dblock.fencing.lease import Lease
    from django_dblock.fencing.lock import fenced_lock

_BREAK = 1.0
"""Seconds between two campaigns while the database can't be reached."""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments for the name, the terms, and the command."""
    parser.add_argument("name", metavar="NAME", help=f"the name of the leadership; {KEY_SYNTAX}")
    parser.add_argument(
        "--ttl", type=_ttl, default=15.0, metavar="SECONDS",
        help="how long after the loss of a leader a standby takes over; 15 if not given",
    )  # fmt: skip
    parser.add_argument(
        "--ready-file", type=Path, metavar="PATH",
        help="a file that exists while this process leads, for a readiness probe",
    )  # fmt: skip
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="after '--': what to run, without a shell"
    )


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Campaign, and run the command while leading; after a loss end the command and campaign again.

    Exits with the command's status when the command ends by itself, or after a signal.

    Raises:
        SystemExit: with the command's status, if that is not 0.
        CommandError: the command can't be run.
    """
    if not hasattr(os, "killpg"):
        raise CommandError("'dblock lead' needs the process groups of POSIX.", returncode=FAILED)
    if not options["name"]:
        raise CommandError("NAME is empty: an unset variable?", returncode=USAGE)
    options = {**options, "exit_code": FAILED, "quiet": False}
    try:
        key, _ = parse_key([options["name"]], options["using"])
    except CommandError as error:
        error.returncode = USAGE
        raise
    with _usable(options["ready_file"]):
        _remove(options["ready_file"])  # of a process that was killed
    while (status := _term(stdout, key, options)) is None:
        pass
    if status:
        raise SystemExit(status)


def _term(stdout: OutputWrapper, key: Any, options: dict[str, Any]) -> int | None:
    """Return the command's status; None to campaign again."""
    from django_dblock.cli.supervisor import Inbox, LostWhileRunning, run_under

    try:
        return run_under(
            partial(_block, key, options), options, leads=partial(_ready, options["ready_file"])
        )
    except CommandError as error:
        unreachable = isinstance(error.__cause__, OperationalError | InterfaceError)
        if error.returncode != LOST and not unreachable:
            raise
        if isinstance(error, LostWhileRunning) and error.asked_to_end is not None:
            return SIGNALLED + error.asked_to_end
        stdout.write(f"{str(error).rstrip('.')}. Campaigning again.")
        stdout.flush()
        with Inbox() as inbox:
            inbox.collect()
            inbox.wait(_BREAK if unreachable else 0)  # another signal than these ends only the wait
        return None if inbox.asked_to_end is None else SIGNALLED + inbox.asked_to_end


def _block(key: Any, options: dict[str, Any], inbox: "Inbox") -> "fenced_lock":
    from django_dblock.coordination.leadership import TermLock

    return TermLock(
        *key, ttl=options["ttl"], timeout=None, using=options["using"], on_lost=inbox.wake
    )


@contextmanager
def _ready(path: Path | None, lease: "Lease") -> Iterator[None]:
    """Let the file exist while the lease is held."""
    if path is None:
        yield
        return
    lease.stop_on_loss(partial(_remove, path))
    with _usable(path):
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(f"{lease.token}\n")
        beside.replace(path)  # a reader never sees a half-written file
    try:
        yield
    finally:
        _remove(path)


@contextmanager
def _usable(path: Path | None) -> Iterator[None]:
    """Raise CommandError if the file can't be written or removed, before the command runs."""
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"Nothing was run: --ready-file {path} can't be used: {error.strerror}.",
            returncode=FAILED,
        ) from error


def _remove(path: Path | None) -> None:
    if path is not None:
        with suppress(FileNotFoundError):
            path.unlink()


def _ttl(text: str) -> float:
    from django_dblock.fencing.lease import is_ttl

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not is_ttl(value):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
