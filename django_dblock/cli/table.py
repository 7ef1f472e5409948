"""Tables for a terminal: through ``rich`` where it is installed, else plain text."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.core.management.base import OutputWrapper

_WIDEST, _TAIL = 60, 20
"""Characters of a name in a table; how many of them are its end."""

_GAP = "  "

Row = tuple[str, ...]

_MANY = 1000
"""Rows; ``rich`` takes a millisecond for one."""


def write_table(stdout: OutputWrapper, columns: Row, rows: Sequence[Row]) -> None:
    """Print the rows under the columns' names; on a terminal, within its width.

    Piped into a file, a table keeps every character; and so does one of very many rows.
    """
    if not stdout.isatty() or len(rows) > _MANY:
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
"""How ``rich`` prints what others have written: ``[bold]`` and ``:lock:`` are names like others."""


def rich(columns: Row, rows: Sequence[Row]) -> Any:
    """Make a table for ``rich``, which must be installed."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def plain(columns: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Return the lines of the table, as wide as they are."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    form = _GAP.join(f"{{:{width}}}" for width in widths)
    for row in (columns, *rows):
        yield form.format(*row).rstrip()


def fitted(columns: Row, rows: Sequence[Row], width: int) -> tuple[Row, list[Row]]:
    """Cut the cells of the widest columns so far that each row is one line of a terminal."""
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
    """Keep what somebody else has written from speaking to the terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def short(text: str) -> str:
    """Cut the middle out of what is too long for a column: names differ at the end, too."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - _TAIL - 1]}…{text[-_TAIL:]}"


def seconds(value: float | None) -> str:
    """Put a time into words; nothing for no time."""
    return "" if value is None else f"{value:.1f} s"
