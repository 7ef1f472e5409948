"""Tables for a terminal: through ``rich`` where it is installed, else plain text."""

from collections.abc import Sequence

from django.core.management.base import OutputWrapper

_WIDEST, _TAIL = 60, 20
"""Characters of a name in a table; how many of them are its end."""


def write(stdout: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the rows under the columns' names."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _write_plain(stdout, columns, rows)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    terminal = stdout.isatty()
    # Piped into a file, a table keeps every character.
    console = Console(width=None if terminal else 1000, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    stdout.write("\n".join(line if terminal else line.rstrip() for line in lines))


def _write_plain(
    stdout: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        stdout.write("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Keep what somebody else has written from speaking to the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def short(text: str) -> str:
    """Cut the middle out of what is too long for a column: names differ at the end, too."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - _TAIL - 1]}…{text[-_TAIL:]}"


def seconds(value: float | None) -> str:
    """Put a time into words; nothing for no time."""
    return "" if value is None else f"{value:.1f} s"
