"""The clock of every wait, deadline and duration of this package."""

import time
from collections.abc import Callable
from functools import partial

# CLOCK_BOOTTIME (Linux) also counts while the machine sleeps; elsewhere CLOCK_MONOTONIC comes
# nearest.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# freezegun replaces time.monotonic wherever a module holds it, time-machine patches it in C, and a
# wait that is measured with a stopped clock never ends. Both leave time.clock_gettime of this clock
# alone, and neither finds a function inside a partial object.
monotonic: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Return seconds on a clock that can't be set, stopped or frozen; only differences are useful."""
