"""``manage.py dblock``: see what is locked, run a command under a lock, end a lock, clean up."""

import signal
from argparse import ArgumentTypeError
from contextlib import nullcontext
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections
from django.utils.connection import ConnectionDoesNotExist

from django_dblock.cli import (
    console,
    doctor,
    key,
    lead,
    migrate,
    purge,
    release,
    run,
    terminate,
    watch,
)
from django_dblock.cli import (
    list as list_locks,
)
from django_dblock.conf import check_namespace
from django_dblock.core.namespace import namespace
from django_dblock.exceptions import DblockError

_SUBCOMMANDS: dict[str, tuple[Any, str]] = {
    "list": (list_locks, "show what is locked, by whom, and who waits for it"),
    "watch": (watch, "show what is locked, refreshed until you press Ctrl-C"),
    "key": (key, "print the number that PostgreSQL locks for a key, as pg_locks shows it"),
    "run": (run, "run a command while holding a lock, and end it before the lock is lost"),
    "migrate": (migrate, "run 'migrate' in one of many processes at a time; the others wait"),
    "lead": (lead, "run a command while this process leads, and stand by otherwise"),
    "release": (release, "end a lease by force, or decide what becomes of an unfinished request"),
    "terminate": (terminate, "end a connection, after a look at what it holds"),
    "purge": (purge, "remove the rows of leases idle for long, and of expired requests"),
    "doctor": (doctor, "check a live database, and say what to do about what is wrong"),
}


class Command(BaseCommand):
    """The management command; each subcommand is a module of :mod:`django_dblock.cli`."""

    help = "Locks in the database: see them, run a command under one, end one, clean up."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration; works at 3 a.m.

    def add_arguments(self, parser: CommandParser) -> None:
        """Add a parser for each subcommand."""
        subparsers = parser.add_subparsers(dest="subcommand", metavar="subcommand", required=True)
        # The summaries are not the modules' docstrings: python -OO has none.
        for name, (module, summary) in _SUBCOMMANDS.items():
            subparser = subparsers.add_parser(name, help=summary, description=summary)
            subparser.add_argument(
                "--using",
                metavar="ALIAS",
                help="database alias; DBLOCK_DATABASE, else 'default', if not given",
            )
            subparser.add_argument(
                "--namespace",
                type=_namespace,
                metavar="NAME",
                help="the namespace of keys; the one of DBLOCK_NAMESPACE if not given",
            )
            module.add_arguments(subparser)

    def handle(self, **options: Any) -> None:
        """Run the subcommand.

        Raises:
            CommandError: the database refuses or can't be reached, in one line; or what the
                subcommand raises.
            SystemExit: with 141 if nobody reads the output any more, as a program that SIGPIPE
                ends; or with the subcommand's status.
        """
        module, _ = _SUBCOMMANDS[options["subcommand"]]
        self.stdout, self.stderr = map(console.tolerant, (self.stdout, self.stderr))
        chosen = nullcontext() if options["namespace"] is None else namespace(options["namespace"])
        try:
            try:
                with chosen:
                    module.run(self.stdout, options)
            finally:
                if module is not watch:  # watch flushes, and ends quietly in a closed pipe
                    self.stdout.flush()
        except BrokenPipeError as error:
            console.discard(self.stdout)
            raise SystemExit(console.SIGNALLED + signal.SIGPIPE) from error
        except ConnectionDoesNotExist as error:
            raise CommandError(f"{error} DATABASES has: {', '.join(connections)}.") from error
        except Error as error:
            raise CommandError(f"{console.printable(console.reason(error))}.") from error
        except (DblockError, ImproperlyConfigured) as error:
            raise CommandError(console.printable(str(error))) from error


def _namespace(text: str) -> str:
    try:
        check_namespace(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text
