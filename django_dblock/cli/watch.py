"""``dblock watch``: show what is locked, again and again, until you press Ctrl-C."""

import errno
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Any, cast

from django.core.management.base import CommandError, CommandParser, OutputWrapper
from django.db import InterfaceError, OperationalError, connections

from django_dblock.cli import console
from django_dblock.cli import list as list_command
from django_dblock.cli.console import Row, fitted, printable
from django_dblock.core.clock import monotonic
from django_dblock.inspect import TableIsLocked

# Wait for the next refresh, or for a signal.


_ENDING = ("SIGTERM", "SIGHUP")
_RESIZED = ("SIGWINCH",)


@contextmanager
def pauses() -> Iterator[Callable[[float], bool]]:
    """Give the function that waits: whether the terminal was resized before the time was over.

    Meanwhile SIGTERM and SIGHUP interrupt as Ctrl-C does, so that the terminal is put in order;
    what is ignored stays ignored (``nohup``). A queue that may be written to by a signal handler
    that has interrupted its reader is what wakes.
    """
    received: SimpleQueue[int] = SimpleQueue()

    def put(number: int, _frame: FrameType | None) -> None:
        received.put(number)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        # Python swallows what is raised in the callback of a weak reference or in __del__. Then the
        # next wait raises again.
        received.put(number)
        raise KeyboardInterrupt

    def wait(seconds: float) -> bool:
        try:
            number = received.get(timeout=seconds)
        except Empty:
            return False
        if handlers_of[number] is interrupt:
            raise KeyboardInterrupt
        return True

    handlers = {**dict.fromkeys(_ENDING, interrupt), **dict.fromkeys(_RESIZED, put)}
    handlers_of = {getattr(signal, name, None): handler for name, handler in handlers.items()}
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers_of.items()
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# What is locked at one moment, or why that can't be said.


@dataclass(frozen=True, slots=True)
class Picture:
    """One refresh.

    Attributes:
        title: when and of what.
        tables: the names of the columns and the rows, of each kind that has any.
        remark: the text to show if there are no rows, or the error.
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
    """Read what is locked, one statement for each kind, and leave no transaction open.

    Raises:
        CommandError: the kind that was asked for has no table there, or its table may not be read;
            or the key can't be read.
    """
    title = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}, every {options['interval']:g} s"
    try:
        found, notes = list_command.find(options)
        _end_transactions()
    except (OperationalError, InterfaceError) as error:
        _hang_up()
        said = " ".join(str(error).split())
        return Picture(title, (), printable(f"The database can't be queried, trying again: {said}"))
    except CommandError as error:  # of the kind that was given by --kind
        if not isinstance(error.__cause__, TableIsLocked):
            raise
        return Picture(title, (), str(error))
    tables = tuple(
        (columns, tuple(rows))
        for columns, rows in (list_command.as_table(kind, found[kind]) for kind in found)
        if rows
    )
    remark = printable(" ".join(notes)) or ("" if tables else list_command.nothing(options, notes))
    return Picture(title, tables, remark)


def _end_transactions() -> None:
    """End the transaction that a query begins if the settings have ``AUTOCOMMIT = False``."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue  # not in use; or in a caller's transaction
        if not connection.autocommit:
            connection.rollback()


def _hang_up() -> None:
    """Close dead connections, so that the next look connects again."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()


# Where pictures are shown: a terminal through ``rich``, a terminal without it, or a pipe.


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
    terminal = Console(file=cast("IO[str]", _Raw(stdout)), **console.AS_IT_IS)
    return _live(terminal, Live(console=terminal, screen=True, auto_refresh=False))


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
        parts.append(console.rich(columns, rows))
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
        yield from console.plain(columns, rows)
    if picture.remark:
        yield picture.remark


_SHORTEST, _LONGEST = 0.1, 86_400.0
_NO_READER = (errno.EPIPE, errno.EIO)
"""The pipe is closed; the terminal is gone."""


def add_arguments(parser: CommandParser) -> None:
    """Take how often, and the filters of ``dblock list``."""
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS",
        help="the time between two refreshes; 2 if not given, 0.1 at least",
    )  # fmt: skip
    list_command.add_filters(parser)


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show the locks again and again; ends at Ctrl-C, SIGTERM, SIGHUP, and if the output is closed.

    Raises:
        CommandError: the interval is none; or what ``dblock list`` would raise.
    """
    interval = options["interval"]
    if not _SHORTEST <= interval <= _LONGEST:  # true for NaN
        raise CommandError(f"--interval {interval}: from {_SHORTEST} s to a day.")
    try:
        with suppress(KeyboardInterrupt), pauses() as wait, screen(stdout) as show:
            while True:
                picture = take(options)
                show(picture)
                until = monotonic() + interval
                while wait(max(0.0, until - monotonic())):
                    show(picture)  # in the terminal's new size
    except OSError as error:
        if error.errno not in _NO_READER:
            raise
        console.discard(stdout)
