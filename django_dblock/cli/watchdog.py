"""A dead man's switch for ``dblock run``: a small process that ends the command's process group.

It kills the group when the time that it was last told is over, because ``dblock run`` is frozen; or
when its standard input ends, because ``dblock run`` was killed. Else ``dblock run`` ends *it*.

It is the first member of the group, so the command is a member from its first instruction. When it
learns that the command runs it leaves the group; while it lives, no other process gets its number.

Runs by itself, with the standard library alone: ``python -I -S watchdog.py GROUP``, where GROUP is
that of ``dblock run``. Reads, in C's form, a time (seconds of ``core.clock.monotonic``)
and whether the command runs.
"""

import contextlib
import os
import select
import signal
import struct
import sys
import time

TOLD = struct.Struct("d?")

_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTSTP")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LOOK = 1.0
"""Seconds between two looks at the clock: the wait itself stands still while the machine sleeps."""


def main() -> None:
    """Watch, and kill the group at the end."""
    for name in _IGNORED:  # sent to the group, or by a terminal to all: not for the keeper
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.write(1, b"\n")  # from now on it can be relied upon
    watch(int(sys.argv[1]))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)


def watch(group: int) -> None:
    """Return when the time has passed, or standard input has ended."""
    until: float | None = None
    while until is None or time.clock_gettime(_CLOCK) < until:
        left = _LOOK if until is None else until - time.clock_gettime(_CLOCK)
        if select.select([0], [], [], max(0, min(left, _LOOK)))[0]:
            told = os.read(0, TOLD.size * 64)
            if not told:
                return
            until, runs = TOLD.unpack(told[-TOLD.size :])
            if runs:
                with contextlib.suppress(PermissionError):  # dblock run has just died
                    os.setpgid(0, group)


if __name__ == "__main__":
    main()
