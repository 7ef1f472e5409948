"""The machine's monotonic clock: the same in all processes, and never moved by a nemesis."""

import os
import select
import time

now = time.monotonic

FAKED = {
    "FAKETIME": "+0",
    "FAKETIME_NO_CACHE": "1",  # a forked worker's own skew counts at once
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
}
"""With libfaketime preloaded: the clock on the wall is moved, and the monotonic one is not.

Else ``threading``'s waits, which libfaketime does not know, would last by the hour that the clock
is off. Python's ``time.sleep`` does not work so: it asks for an end by the clock, which libfaketime
moves all the same. :func:`mend_sleep` has it ask for a length instead.
"""


def mend_sleep() -> None:
    """Let ``time.sleep`` work in a process whose clock is moved."""
    if "faketime" in os.environ.get("LD_PRELOAD", ""):
        time.sleep = lambda seconds: select.select([], [], [], seconds)
