"""What is said where a table was never made."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import ProgrammingError

_UNDEFINED_TABLE = "42P01"


@contextmanager
def tolerate_missing_table(kind: str, asked: str | None) -> Iterator[None]:
    """End the block where the table is missing; who asked for that kind by its name is told.

    Raises:
        CommandError: the table is not there, and that kind was asked for.
    """
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", None) != _UNDEFINED_TABLE:
            raise
        if asked == kind:
            raise CommandError(
                f"The table of kind {kind!r} is not in this database: run 'manage.py migrate', or "
                f"pass --using with the alias of the one where it is."
            ) from error
