"""Helpers for tests of code that locks: hold a lock, run a race, assert that no lock is left.

The helpers use real connections to the real test database: a fake lock proves nothing. For pytest
there are fixtures of the same names in :mod:`django_dblock.testing.pytest`.
"""

from django_dblock.testing.hold import hold_lock
from django_dblock.testing.leaks import assert_no_locks
from django_dblock.testing.threads import race

__all__ = ["assert_no_locks", "hold_lock", "race"]
