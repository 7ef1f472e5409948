"""Helpers for tests of code that locks: hold, take away, race, and assert that nothing is left.

The helpers use real connections to the real test database: a fake lock proves nothing. For pytest
there are fixtures of the same names in :mod:`django_dblock.testing.pytest`.
"""

from django_dblock.testing.hold import hold_lock
from django_dblock.testing.leaks import assert_no_locks
from django_dblock.testing.leases import hold_lease, take_away
from django_dblock.testing.periods import database_time
from django_dblock.testing.threads import race

__all__ = ["assert_no_locks", "database_time", "hold_lease", "hold_lock", "race", "take_away"]
