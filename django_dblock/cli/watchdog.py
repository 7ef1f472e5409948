"""The watchdog of ``dblock run``: a small process that kills the command's process group.

The watchdog kills the group if ``dblock run`` is frozen: when the last time that ``dblock run``
sent has passed. The watchdog also kills the group if ``dblock run`` was killed: when standard input
ends. Else ``dblock run`` ends the watchdog.

The watchdog is the first member of the group, so the command is a member from its first
instruction. When the watchdog reads that the command runs, the watchdog leaves the group. While the
watchdog lives, no other process gets the group's number.

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
            if runs:
                with contextlib.suppress(PermissionError):  # dblock run has just died
                    os.setpgid(0, group)


if __name__ == "__main__":
    main()
