"""What happened, for logs and metrics. A receiver's error is logged by Django, never raised.

All are sent by the lock's class with ``kind`` (``"advisory"``), ``keys`` (a tuple of keys),
``name`` (the same for people), ``using`` (the alias) and ``shared``.
"""

from django.dispatch import Signal

lock_acquired = Signal()
"""A lock was taken. Also ``waited`` (seconds; 0.0 where nobody was before us)."""

lock_released = Signal()
"""The transaction that a lock opened has ended. Also ``held`` (seconds) and ``committed``.

Not sent where the lock joined a transaction that was open already: nothing tells when that ends.
"""

lock_timeout = Signal()
"""A lock was not had in time. Also ``waited`` (seconds)."""

lock_deadlock = Signal()
"""A lock was not had because of a deadlock. Also ``waited`` (seconds)."""
