"""The watchdog of ``dblock run``: a small process that kills the command's process group.

The watchdog kills the group if ``dblock run`` is frozen: when the last time that ``dblock run``
sent has passed. The watchdog also kills the group if ``dblock run`` was killed: when standard input
ends. Else ``dblock run`` ends the watchdog.

The watchdog is the first member of the group, so the command is a member from its first
instruction. When the watchdog reads that the command runs, the watchdog leaves the group, for a new
group where no signal to the group of ``dblock run`` reaches it. While the watchdog lives, no other
process gets the number of the command's group.

The file runs with the standard library alone: ``python -I -S watchdog.py GROUP``, where GROUP is
the process group of ``dblock run``. Standard input has messages in C's form: a time (seconds of
``core.clock.monotonic``) and whether the command runs.
"""

import contextlib
import os
import select
import signal
import struct
import sys
import time

MESSAGE = struct.Struct("d?")

_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTSTP")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LOOK = 1.0
"""Seconds between two looks at the clock: a wait does not count time while the machine sleeps."""
_LONGEST_START = 60.0
"""Seconds after which the child ends if the watchdog was killed."""


def main() -> None:
    """Watch until the time has passed or standard input has ended; then kill the group."""
    for name in _IGNORED:  # sent to the whole group, but not meant for the watchdog
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.write(1, b"\n")  # tells dblock run that the watchdog is ready
    watch(int(sys.argv[1]))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)


def watch(group: int) -> None:
    """Return when the time has passed, or standard input has ended."""
    until: float | None = None
    while until is None or time.clock_gettime(_CLOCK) < until:
        left = _LOOK if until is None else until - time.clock_gettime(_CLOCK)
        if select.select([0], [], [], max(0, min(left, _LOOK)))[0]:
            messages = os.read(0, MESSAGE.size * 64)
            if not messages:
                return
            until, runs = MESSAGE.unpack(messages[-MESSAGE.size :])
            if runs and os.getpgrp() == os.getpid():
                leave_for_new_group(group)


def leave_for_new_group(other: int) -> None:
    """Join a new process group; if no process can be started, the other group."""
    # The watchdog's own number is that of the command's group, so a child has to lead the new one.
    child: int | None = None
    with contextlib.suppress(OSError):
        child = os.fork()
    if child == 0:
        os.closerange(0, 3)  # if the watchdog dies now, who reads dblock run's output waits for it
        time.sleep(_LONGEST_START)  # the watchdog ends it as soon as it has joined
        os._exit(0)
    if child is not None:
        os.setpgid(child, child)
    with contextlib.suppress(PermissionError):  # dblock run has just died
        os.setpgid(0, child or other)
    if child is not None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
