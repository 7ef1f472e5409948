"""What ``dblock run`` is told while it waits: signals, and that the lease is lost."""

import signal
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
OTHERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)


class Inbox:
    """Takes the process's signals while it is entered. What is ignored stays ignored (``nohup``).

    At first those that end a process interrupt what is done, as Ctrl-C does; from
    :meth:`collect` on, all are put into a queue. (That queue may be written to by a signal handler
    that has interrupted a reader or a writer of it, and by any thread.)

    Attributes:
        interrupted_by: the signal that raised KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.interrupted_by: int = signal.SIGINT
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in ENDING:
            self._handle(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def collect(self) -> None:
        """Interrupt nothing from now on."""
        for number in (*ENDING, *OTHERS):
            self._handle(number, self._put)

    def wake(self, *_: object) -> None:
        """End a wait, from any thread."""
        self._queue.put(None)

    def wait(self, seconds: float) -> int | None:
        """Return the next signal; None when the time is over, or somebody called ``wake``."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def _handle(self, number: int, handler: Any) -> None:
        current = signal.getsignal(number)
        if current is not signal.SIG_IGN or number == signal.SIGCHLD:
            self._before.setdefault(number, current)
            signal.signal(number, handler)

    def _put(self, number: int, _frame: FrameType | None) -> None:
        self._queue.put(number)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted_by = number
        raise KeyboardInterrupt
