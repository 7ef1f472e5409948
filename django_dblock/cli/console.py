"""Tables for a terminal: through ``rich`` where it is installed, else plain text."""

import getpass
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from django.core.management.base import CommandError, OutputWrapper
from django.db import Error

from django_dblock.inspect import TableIsLocked

_WIDEST, _TAIL = 60, 20
"""Characters of a cell on a terminal; how many of them are the text's end."""

_GAP = "  "

Row = tuple[str, ...]

_MANY = 1000
"""Rows; ``rich`` takes a millisecond for one."""


def write_table(stdout: OutputWrapper, columns: Row, rows: Sequence[Row]) -> None:
    """Print the rows under the columns' names; on a terminal, within its width.

    In a pipe or a file a table keeps every character; on a terminal long cells are shortened.
    """
    if not stdout.isatty():
        stdout.write("\n".join(plain(columns, rows)))
        return
    rows = [tuple(map(short, row)) for row in rows]
    if len(rows) > _MANY:
        stdout.write("\n".join(plain(columns, rows)))
        return
    try:
        from rich.console import Console
    except ImportError:
        stdout.write("\n".join(plain(columns, rows)))
        return
    console = Console(**AS_IT_IS)
    with console.capture() as captured:
        console.print(rich(columns, rows))
    stdout.write(captured.get().rstrip("\n"))


AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}
"""Options that make ``rich`` print names as they are, ``[bold]`` and ``:lock:`` too."""


def rich(columns: Row, rows: Sequence[Row]) -> Any:
    """Return a table of ``rich``, which must be installed."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def plain(columns: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Return the lines of the table, however wide."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    form = _GAP.join(f"{{:{width}}}" for width in widths)
    for row in (columns, *rows):
        yield form.format(*row).rstrip()


def fitted(columns: Row, rows: Sequence[Row], width: int) -> tuple[Row, list[Row]]:
    """Shorten the cells of the widest columns until each row is one line of a terminal."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    room = width - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1

    def cut(row: Row) -> Row:
        return tuple(
            cell if len(cell) <= most else f"{cell[: most - 1]}…"
            for cell, most in zip(row, widths, strict=True)
        )

    return cut(columns), list(map(cut, rows))


def printable(text: str) -> str:
    """Return the text with ``?`` for control characters, which a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def short(text: str) -> str:
    """Return a text that fits a column, its middle left out: names differ at their ends, too."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - _TAIL - 1]}…{text[-_TAIL:]}"


def seconds(value: float | None) -> str:
    """Return a time in seconds with its unit; an empty string for None."""
    return "" if value is None else f"{value:.1f} s"


# How far a long job is: a bar through ``rich`` where it is installed, else plain numbers.


def progress_bar(
    stdout: OutputWrapper, what: str, batches: Iterable[int], total: int
) -> Iterable[int]:
    """Show a progress bar on a terminal; print nothing if the output is redirected."""
    if not stdout.isatty():
        return batches
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return _counted(stdout, batches, total)
    return _barred(Progress(console=Console(stderr=True), transient=True), what, batches, total)


def _barred(progress: Any, what: str, batches: Iterable[int], total: int) -> Iterable[int]:
    with progress as bar:
        task = bar.add_task(what, total=total)
        for count in batches:
            bar.advance(task, count)
            yield count


def _counted(stdout: OutputWrapper, batches: Iterable[int], total: int) -> Iterable[int]:
    done = 0
    for count in batches:
        done += count
        stdout.write(f"\r{done} of {total}", ending="")
        yield count
    stdout.write("")


# The person at the command line: asked before something is ended by force, and known by name.


def confirm(question: str) -> None:
    """Return after the operator has answered yes.

    Raises:
        CommandError: the operator did not answer yes, or standard input is not a terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():  # None: its descriptor is closed
        raise CommandError("There is no terminal to ask for confirmation. Pass --yes to confirm.")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("Not done.")


def operator_name() -> str:
    """Return the operator's name, from the operating system and not from the environment."""
    try:
        import pwd

        uid = os.getuid()
        user = pwd.getpwuid(uid).pw_name
    except ImportError:  # Windows
        return getpass.getuser()
    except KeyError:  # a container that runs as a mere number
        return f"uid {uid}"
    behind = os.environ.get("SUDO_USER") if uid == 0 else None
    return f"{user} (sudo: {behind})" if behind else user


# An output that a pipe, a closed descriptor or a terminal without Unicode does not end.


def tolerant(output: OutputWrapper) -> OutputWrapper:
    """Return an output that takes any text: escaped if it can't be encoded, dropped if closed."""
    file = getattr(output, "_out", None)
    if file is None:  # python found its descriptor closed
        return OutputWrapper(Path(os.devnull).open("w", encoding="utf-8"))
    if hasattr(file, "reconfigure"):
        file.reconfigure(errors="backslashreplace")
    return output


def discard(stdout: OutputWrapper) -> None:
    """Drop what is still buffered, so that Python does not complain about it at exit.

    Source: Python manual, "Note on SIGPIPE" in :mod:`signal`.
    """
    if getattr(stdout, "_out", None) is sys.stdout:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout.fileno())
        os.close(nowhere)


# What is said if a table can't be read.


def reason(error: Error) -> str:
    """Return what the database refused, in one line, and what to do about it."""
    cause = error.__cause__
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return (
            f"{said}: run 'manage.py migrate', or pass --using with the alias of the database "
            f"where the tables of django_dblock are"
        )
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return f"{said}: GRANT that right to the role of this alias"
    if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
        return (
            f"{said}: the database is a standby, or read-only. Pass --using with the alias of the "
            f"primary"
        )
    return said


@contextmanager
def note_unreadable(kind: str, options: dict[str, Any], done: str = "shown") -> Iterator[None]:
    """End the block if the table of this kind can't be used now, and note the reason.

    A router may keep the table in a database that is down, the role may have no right to it, a
    policy or a server timeout may refuse the statement, or a session has locked the table for
    itself: the other kinds are shown all the same. A missing table is noted only if its kind was
    given by ``--kind``: a project that does not use leases need not have their table.

    Args:
        kind: the kind.
        options: the command's options; notes are appended to ``options["notes"]``.
        done: what the command does with the rows, as in "is not shown".

    Raises:
        CommandError: that kind was given by ``--kind``, and its table is missing, forbidden or
            locked.
        django.db.Error: that kind was given by ``--kind``, and the statement failed otherwise.
    """
    try:
        yield
    except Error as error:
        cause = error.__cause__
        missing = isinstance(cause, psycopg.errors.UndefinedTable)
        refused = isinstance(error, TableIsLocked) or isinstance(
            cause, psycopg.errors.InsufficientPrivilege
        )
        if options["kind"] == kind:
            if not missing and not refused:
                raise
            raise CommandError(
                f"The kind {kind!r} can't be {done}: {printable(reason(error))}."
            ) from error
        if not missing:
            options["notes"].append(f"{kind} is not {done}: {reason(error)}.")


# The exit statuses of ``dblock run`` that are not the command's own, and of ``dblock doctor``.


NOT_ACQUIRED = 75
"""Another holder has the lock: EX_TEMPFAIL of sysexits.h, try again later."""

LOST = 79
"""The lock was lost while the command ran: the first number after those of sysexits.h."""

USAGE = 2
"""The arguments are wrong; argparse's own status."""

FAILED = 125
"""Nothing was run, because dblock itself failed; the status of ``timeout`` and ``docker run``."""

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""The command can't be executed, or does not exist; the statuses of the shells."""

WARNINGS, ERRORS = 3, 4
"""The worst finding of ``dblock doctor``; 1 and 2 mean that it could not examine the database."""

SIGNALLED = 128
"""Plus the number of the signal; the status of the shells."""
