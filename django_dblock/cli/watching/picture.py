"""What is locked at one moment, or why that can't be said."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from django_dblock.cli import list_locks
from django_dblock.cli.table import Row, fitted, printable


@dataclass(frozen=True, slots=True)
class Picture:
    """One refresh.

    Attributes:
        title: when and of what.
        tables: the names of the columns and the rows, of each kind that has any.
        remark: what stands where there are none; or what went wrong.
    """

    title: str
    tables: Sequence[tuple[Row, Sequence[Row]]]
    remark: str = ""

    def cropped(self, width: int, lines: int) -> "Picture":
        """Leave out what a terminal of this size can't show, and say how many rows that is."""
        left = lines - 2  # the title, and how many more there are
        tables, out = [], 0
        for columns, rows in self.tables:
            shown = rows[: max(0, left - 2)]  # the names of the columns, and an empty line
            left -= len(shown) + 2
            out += len(rows) - len(shown)
            if shown:
                tables.append(fitted(columns, shown, width))
        return Picture(self.title, tuple(tables), f"… {out:,} more" if out else self.remark)


def take(options: dict[str, Any]) -> Picture:
    """Ask the database, one statement for each kind, and leave no transaction open.

    Raises:
        CommandError: the kind that was asked for has no table there; or the key can't be read.
    """
    title = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}, every {options['interval']:g} s"
    try:
        found = list_locks.find(options)
        _end_transactions()
    except (OperationalError, InterfaceError) as error:
        _hang_up()
        said = " ".join(str(error).split())
        return Picture(title, (), printable(f"The database can't be asked, trying again: {said}"))
    tables = tuple(
        (columns, tuple(rows))
        for columns, rows in (list_locks.as_table(kind, found[kind]) for kind in found)
        if rows
    )
    return Picture(title, tables, "" if tables else list_locks.NOTHING)


def _end_transactions() -> None:
    """With ``AUTOCOMMIT = False`` in the settings, asking has begun one."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue  # not in use; or in a caller's transaction
        if not connection.autocommit:
            connection.rollback()


def _hang_up() -> None:
    """The next look connects anew."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
