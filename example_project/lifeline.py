"""Ends this process when the one that started it is gone, however that one ended.

The starter holds the other end of this process's standard input. It need not do anything to close
it: even SIGKILL does. ``python -m lifeline PID …`` does it for others, which may be stopped.
"""

import os
import signal
import sys
import threading
from contextlib import suppress


def hold_on(*, for_process: int | None = None) -> None:
    """Send a SIGTERM to this process, or to another, as soon as the standard input ends."""
    threading.Thread(target=_wait, args=[for_process or os.getpid()], daemon=True).start()


def _wait(process: int) -> None:
    # Not sys.stdin: a daemon thread inside its buffer would be in the way of a normal exit.
    while os.read(0, 4096):
        pass
    end(process)


def end(process: int) -> None:
    """Send a SIGTERM, and see to it that it arrives: a stopped process takes none."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGCONT)


if __name__ == "__main__":
    while os.read(0, 4096):
        pass
    for argument in sys.argv[1:]:
        end(int(argument))
