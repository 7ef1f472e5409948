"""``manage.py dblock``: see what is locked, run a command under a lock, end a lock, clean up."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from django_dblock.cli import (
    doctor,
    key,
    purge,
    release,
    run,
    terminate,
    watch,
)
from django_dblock.cli import (
    list as list_locks,
)

_SUBCOMMANDS: dict[str, Any] = {
    "list": list_locks,
    "watch": watch,
    "key": key,
    "run": run,
    "release": release,
    "terminate": terminate,
    "purge": purge,
    "doctor": doctor,
}


class Command(BaseCommand):
    """Hands over to the subcommand's module."""

    help = "Locks in the database: see them, run a command under one, end one, clean up."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration; works at 3 a.m.

    def add_arguments(self, parser: CommandParser) -> None:
        """Give each subcommand its own parser."""
        subparsers = parser.add_subparsers(dest="subcommand", metavar="subcommand", required=True)
        for name, module in _SUBCOMMANDS.items():
            summary = (module.__doc__ or "").splitlines()[0].partition(": ")[2]
            subparser = subparsers.add_parser(name, help=summary, description=summary)
            subparser.add_argument(
                "--using",
                metavar="ALIAS",
                help="database alias; DBLOCK_DATABASE, else 'default', if not given",
            )
            module.add_arguments(subparser)

    def handle(self, **options: Any) -> None:
        """Run the subcommand."""
        try:
            _SUBCOMMANDS[options["subcommand"]].run(self.stdout, options)
        except ConnectionDoesNotExist as error:
            raise CommandError(f"{error} DATABASES has: {', '.join(connections)}.") from error
