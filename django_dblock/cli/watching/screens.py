"""Where pictures are shown: a terminal through ``rich``, a terminal without it, or a pipe."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from django.core.management.base import OutputWrapper

from django_dblock.cli import table
from django_dblock.cli.watching.picture import Picture

Show = Callable[[Picture], None]

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The other screen, without a cursor and without wrapping lines (xterm's control sequences)."""
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_TOP, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


@contextmanager
def screen(stdout: OutputWrapper) -> Iterator[Show]:
    """Choose one; what was on the terminal before is there again at the end."""
    if not stdout.isatty():
        yield lambda picture: _print(stdout, picture)
        return
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        with _other_screen(stdout) as show:
            yield show
        return
    console = Console(file=cast("IO[str]", _Raw(stdout)), **table.AS_IT_IS)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda picture: live.update(_rich(picture.cropped(console.height)), refresh=True)


class _Raw:
    """The output as ``rich`` wants a file: nothing is added to what is written."""

    def __init__(self, stdout: OutputWrapper) -> None:
        self._stdout = stdout

    def write(self, text: str) -> None:
        self._stdout.write(text, ending="")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def _rich(picture: Picture) -> Any:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(picture.title, style="bold")]
    for columns, rows in picture.tables:
        if columns != picture.tables[0][0]:
            parts.append(Text())
        one = table.rich(columns, rows)
        for column in one.columns:
            column.no_wrap = True
        parts.append(one)
    return Group(*parts, Text(picture.remark))


@contextmanager
def _other_screen(stdout: OutputWrapper) -> Iterator[Show]:
    def show(picture: Picture) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[:width] for line in _lines(picture.cropped(height))][:height]
        text = f"{_TO_END_OF_LINE}\r\n".join(lines)
        stdout.write(f"{_TOP}{text}{_TO_END_OF_LINE}{_TO_END}", ending="")
        stdout.flush()

    stdout.write(_ENTER, ending="")
    try:
        yield show
    finally:
        stdout.write(_LEAVE, ending="")
        stdout.flush()


def _print(stdout: OutputWrapper, picture: Picture) -> None:
    stdout.write("\n".join([*_lines(picture), "", ""]))
    stdout.flush()


def _lines(picture: Picture) -> Iterator[str]:
    yield picture.title
    for columns, rows in picture.tables:
        if columns != picture.tables[0][0]:
            yield ""
        yield from table.plain(columns, rows)
    if picture.remark:
        yield picture.remark
