"""Tables for a terminal: through ``rich`` where it is installed, else plain text."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.core.management.base import OutputWrapper

_WIDEST, _TAIL = 60, 20
"""Characters of a name in a table; how many of them are its end."""

_MANY = 1000
"""Rows; ``rich`` takes a millisecond for one."""


def write(stdout: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
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


def rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Make a table for ``rich``, which must be installed."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return the lines of the table, as wide as they are."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    form = "  ".join(f"{{:{width}}}" for width in widths)
    for row in (columns, *rows):
        yield form.format(*row).rstrip()


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
