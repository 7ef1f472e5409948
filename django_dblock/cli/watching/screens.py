"""Where pictures are shown: a terminal through ``rich``, a terminal without it, or a pipe."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import IO, Any, cast

from django.core.management.base import OutputWrapper

from django_dblock.cli import table
from django_dblock.cli.watching.picture import Picture

Show = Callable[[Picture], None]

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The other screen, without a cursor and without wrapping lines (xterm's control sequences)."""
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_TOP, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


def screen(stdout: OutputWrapper) -> AbstractContextManager[Show]:
    """Choose one; what was on the terminal before is there again at the end."""
    if not stdout.isatty():
        return nullcontext(partial(_print, stdout))
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return _other_screen(stdout)
    console = Console(file=cast("IO[str]", _Raw(stdout)), **table.AS_IT_IS)
    return _live(console, Live(console=console, screen=True, auto_refresh=False))


@contextmanager
def _live(console: Any, live: Any) -> Iterator[Show]:
    with live:
        yield lambda picture: live.update(_rich(picture.cropped(*console.size)), refresh=True)


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
    for number, (columns, rows) in enumerate(picture.tables):
        parts += [Text()] * bool(number)
        parts.append(table.rich(columns, rows))
    return Group(*parts, Text(picture.remark))


@contextmanager
def _other_screen(stdout: OutputWrapper) -> Iterator[Show]:
    def show(picture: Picture) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[:width] for line in _lines(picture.cropped(width, height))][:height]
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
    for number, (columns, rows) in enumerate(picture.tables):
        yield from [""] * bool(number)
        yield from table.plain(columns, rows)
    if picture.remark:
        yield picture.remark
