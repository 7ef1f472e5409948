"""``dblock run``: run a command while holding a fenced lock, and end it before the lock is lost."""

import os
from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.cli.console import FAILED, NOT_ACQUIRED, USAGE
from django_dblock.cli.key import KEY_SYNTAX, parse_key


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments for the lock, its terms, and the command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--lock", nargs="+", metavar="PART",
        help=f"the key of a lock; {KEY_SYNTAX}",
    )  # fmt: skip
    what.add_argument(
        "--advisory", nargs="+", metavar="PART",
        help="the key of an advisory lock: no table, no ttl, freed by the server as soon as this "
        "process or its connection ends",
    )  # fmt: skip
    what.add_argument(
        "--semaphore", nargs="+", metavar="PART",
        help="the key of a semaphore: at most --permits commands run at a time",
    )  # fmt: skip
    what.add_argument(
        "--once-per", metavar="PERIOD",
        help="run the command once in each day, hour, week, month, '15 min', …, by the database's "
        "clock; needs --key. If it has succeeded in this period, exit with 0",
    )  # fmt: skip
    parser.add_argument(
        "--permits", type=int, metavar="N", help="how many permits the semaphore has"
    )
    parser.add_argument(
        "--key", nargs="+", metavar="PART", help="the name of the job of --once-per"
    )
    parser.add_argument(
        "--tz", metavar="ZONE",
        help="the time zone of the periods of --once-per; TIME_ZONE if not given",
    )  # fmt: skip
    parser.add_argument(
        "--ttl", type=float, default=30.0, metavar="SECONDS",
        help="how long the lock stays held after this process is lost; 30 if not given",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_timeout, default=0.0, metavar="SECONDS",
        help="how long to wait for the lock, or 'forever'; 0 (not at all) if not given",
    )  # fmt: skip
    parser.add_argument(
        "--hold-at-least", type=float, default=0.0, metavar="SECONDS",
        help="hold the lock for at least this long, even if the command ends earlier",
    )  # fmt: skip
    parser.add_argument(
        "--lock-delay", type=float, default=0.0, metavar="SECONDS",
        help="after an expiry without a release, grant the lock to nobody for this long",
    )  # fmt: skip
    parser.add_argument(
        "--exit-code", type=int, default=NOT_ACQUIRED, metavar="STATUS",
        help=f"exit status if another holder has the lock; {NOT_ACQUIRED} if not given",
    )  # fmt: skip
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing if another holder has the lock"
    )
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="after '--': what to run, without a shell"
    )


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Run the command and exit with its status; each kind of failure has its own exit status.

    Raises:
        SystemExit: with the command's status, if that is not 0.
        CommandError: the lock was not acquired, or was lost; or the command can't be run.
    """
    if not hasattr(os, "killpg"):
        raise CommandError("'dblock run' needs the process groups of POSIX.", returncode=FAILED)
    from django_dblock.cli.supervisor import run_once_per, run_under_lock

    _refuse_combinations(options)
    option = next(name for name in ("lock", "advisory", "semaphore", "key") if options[name])
    if options[option] == [""]:
        raise CommandError(f"--{option} is empty: an unset variable?", returncode=USAGE)
    if option == "advisory" and (options["hold_at_least"] or options["lock_delay"]):
        raise CommandError(
            "--hold-at-least and --lock-delay can't be combined with --advisory.", returncode=USAGE
        )
    try:
        key, _ = parse_key(options[option], options["using"])
    except CommandError as error:
        error.returncode = USAGE
        raise
    if options["once_per"]:
        status = run_once_per(key, options, stdout)
    else:
        status = run_under_lock(key, options)
    if status:
        raise SystemExit(status)


def _refuse_combinations(options: dict[str, Any]) -> None:
    if options["once_per"] == "":
        raise CommandError("--once-per is empty: an unset variable?", returncode=USAGE)
    for option, needs in (("semaphore", "permits"), ("once_per", "key")):
        if bool(options[option]) != bool(options[needs]):
            dashed = option.replace("_", "-")
            raise CommandError(
                f"--{dashed} and --{needs} must be given together.", returncode=USAGE
            )


def _timeout(text: str) -> float | None:
    if text == "forever":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is neither a number nor 'forever'") from error
