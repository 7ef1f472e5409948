"""``dblock migrate``: run ``migrate`` under a lock, so that only one of many processes migrates."""

from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser, OutputWrapper
from django.db import DEFAULT_DB_ALIAS

from django_dblock.cli.advisory_hold import AdvisoryHold
from django_dblock.cli.console import LOST, NOT_ACQUIRED, USAGE, printable
from django_dblock.core.application_name import named
from django_dblock.exceptions import LockTimeout

KEY = ("dblock", "migrate")

DEFAULT_TIMEOUT = 600.0
"""Seconds."""


def add_arguments(parser: CommandParser) -> None:
    """Add the timeout, and the arguments of ``migrate``."""
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="SECONDS",
        help=f"how long to wait for another process that migrates; {DEFAULT_TIMEOUT:.0f} if not "
        f"given",
    )  # fmt: skip
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="after '--': the arguments of 'migrate'"
    )


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Wait until no other process migrates this database, then run Django's ``migrate``.

    A process that has waited runs ``migrate`` as well, and finds nothing to do.

    Raises:
        CommandError: with status 75 if another process is still migrating at the timeout; with 79
            if the lock was lost while ``migrate`` ran; or as ``migrate`` raises it.
        SystemExit: with the status of ``migrate``, for example of ``--check`` or ``--plan``.
    """
    using = options["using"] or DEFAULT_DB_ALIAS
    timeout, arguments = options["timeout"], options["arguments"]
    if not timeout >= 0:  # true for NaN
        raise CommandError(f"--timeout {timeout}: at least 0 s.", returncode=USAGE)
    if any(argument.startswith("--database") for argument in arguments):
        raise CommandError("Give the database as --using, before '--'.", returncode=USAGE)

    def announce(holder: str) -> None:
        stdout.write(printable(f"Waiting for the process that migrates {using!r}: {holder}."))
        stdout.flush()

    hold = AdvisoryHold(named(KEY), using=using, timeout=timeout, on_wait=announce)
    try:
        with hold:
            call_command(
                "migrate", f"--database={using}", *arguments, stdout=stdout,
                skip_checks="--skip-checks" in arguments,
            )  # fmt: skip
            if not hold.look_now():
                raise CommandError(
                    f"The lock was lost while 'migrate' ran ({hold.loss().reason}): another "
                    f"process may have migrated at the same time. Look at 'manage.py "
                    f"showmigrations --database {using}'.",
                    returncode=LOST,
                )
    except LockTimeout as error:
        raise CommandError(
            printable(
                f"Another process is still migrating {using!r} after {timeout:g} s: "
                f"{error.holder}. Nothing was run; try again, or allow a longer --timeout."
            ),
            returncode=NOT_ACQUIRED,
        ) from error
