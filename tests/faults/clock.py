"""The machine's own monotonic clock, also in a process whose clocks are faked.

libfaketime replaces ``clock_gettime`` of the C library; histories of several processes can only be
compared by a clock that it can't reach. So there it is asked for by its system call.
"""

import ctypes
import os
import platform
import time

_NUMBERS = {"x86_64": 228, "aarch64": 113}
_MONOTONIC = 1


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _by_system_call() -> float:
    found = _Time()
    _libc.syscall(_NUMBERS[platform.machine()], _MONOTONIC, ctypes.byref(found))
    return found.seconds + found.nanoseconds / 1e9


if "faketime" in os.environ.get("LD_PRELOAD", ""):
    _libc = ctypes.CDLL(None)
    now = _by_system_call
else:
    now = time.monotonic
