"""Wait for the next refresh, or for a signal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType

_ENDING = ("SIGTERM", "SIGHUP")
_RESIZED = ("SIGWINCH",)


@contextmanager
def pauses() -> Iterator[Callable[[float], bool]]:
    """Give the function that waits: whether the terminal was resized before the time was over.

    Meanwhile SIGTERM and SIGHUP interrupt as Ctrl-C does, so that the terminal is put in order;
    what is ignored stays ignored (``nohup``). A queue that may be written to by a signal handler
    that has interrupted its reader is what wakes.
    """
    resized: SimpleQueue[int] = SimpleQueue()

    def put(number: int, _frame: FrameType | None) -> None:
        resized.put(number)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def wait(seconds: float) -> bool:
        try:
            resized.get(timeout=seconds)
        except Empty:
            return False
        return True

    handlers = {**dict.fromkeys(_ENDING, interrupt), **dict.fromkeys(_RESIZED, put)}
    numbers = {getattr(signal, name, None): handler for name, handler in handlers.items()}
    before = {
        number: signal.signal(number, handler)
        for number, handler in numbers.items()
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
