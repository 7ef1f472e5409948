"""``dblock watch``: show what is locked, again and again, until you press Ctrl-C."""

import errno
import os
import sys
import time
from contextlib import suppress
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.cli import list_locks
from django_dblock.cli.watching.pause import pauses
from django_dblock.cli.watching.picture import take
from django_dblock.cli.watching.screens import screen

_SHORTEST, _LONGEST = 0.1, 86_400.0
_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""The pipe is closed; the terminal is gone."""


def add_arguments(parser: CommandParser) -> None:
    """Take how often, and the filters of ``dblock list``."""
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS",
        help="the time between two looks; 2 if not given, 0.1 at least",
    )  # fmt: skip
    list_locks.add_filters(parser)


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show picture after picture; ends at Ctrl-C, SIGTERM, SIGHUP, and when nobody reads on.

    Raises:
        CommandError: the interval is none; or what ``dblock list`` would raise.
    """
    interval = options["interval"]
    if not _SHORTEST <= interval <= _LONGEST:  # true for NaN
        raise CommandError(f"--interval {interval}: from {_SHORTEST} s to a day.")
    try:
        with suppress(KeyboardInterrupt), pauses() as wait, screen(stdout) as show:
            while True:
                picture = take(options)
                show(picture)
                until = time.monotonic() + interval
                while wait(max(0.0, until - time.monotonic())):
                    show(picture)  # in the terminal's new size
    except OSError as error:
        if error.errno not in _NOBODY_READS:
            raise
        _let_go(stdout)


def _let_go(stdout: OutputWrapper) -> None:
    """What is still in the buffer goes nowhere, without a word at exit.

    Python's manual: "Note on SIGPIPE".
    """
    if getattr(stdout, "_out", None) is sys.stdout:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout.fileno())
        os.close(nowhere)
