"""Signals: one for each event of a lock, a version or an idempotent request, for logs and metrics.

Django logs an error that a receiver raises; the error never reaches the code that uses the lock.

A receiver runs inside the lock's transaction and should not query it: the error of a query would
abort the transaction, and hide its cause.

The sender is the lock's class. Each signal of a lock carries ``kind``, ``keys`` (a tuple of keys),
``name`` (the keys as text), ``using`` (the alias) and ``shared``. Signals of leases also carry
``token``. The kind is ``"advisory"`` or ``"fenced"``; for the coordination tools it is
``"advisory_semaphore"``, ``"semaphore"``, ``"rwlock"``, ``"leader"``, ``"partition"``,
``"worker"`` or ``"latch"``. A latch is not held: ``lock_acquired`` says that a wait has seen the
latch open.
"""

from django.dispatch import Signal

lock_acquired = Signal()
"""A lock was acquired. Also ``waited`` (seconds; 0.0 if the lock was free) and ``took`` (seconds
from the request to the grant, the wait and the round trip included)."""

lock_released = Signal()
"""The transaction that an advisory lock opened has ended. Also ``held`` (seconds until the block
ended, its ``on_commit`` hooks included) and ``committed``: True or False, or None if leaving the
block raised, because COMMIT was refused, its result was lost, or a hook failed.

Of a fenced lock: a lease was released. Also ``held``, and ``lost``: whether the lease had ended
before the release.

Not sent if the lock joined an open transaction: Django does not tell when that transaction ends.
"""

lock_timeout = Signal()
"""A lock was not acquired within its timeout. Also ``waited`` (seconds)."""

lock_deadlock = Signal()
"""A lock was not acquired because of a deadlock. Also ``waited`` (seconds)."""

lock_refused = Signal()
"""A lock was not acquired for another reason. Also ``error``, which is raised next:
``LockTableFull``, ``UnsafeIsolation``, ``StandbyDatabase``, ``UnsupportedDatabase``,
``NotReplicated`` or ``OpenTransaction``."""

stale_object = Signal()
"""A versioned row was not written, because it was changed or deleted. The sender is the model.

Also ``error``: the :class:`~django_dblock.StaleObject`, or for ``bulk_save_cas()`` the
:class:`~django_dblock.StaleObjects`, that is raised next (or reported).
"""

conflict_retried = Signal()
"""``@retry_on_conflict`` runs a function again. The sender is the function.

Also ``error`` (the error of the failed run), ``attempt`` (the number of that run, from 1) and
``delay`` (seconds until the next run).
"""

lock_lost = Signal()
"""A lease is lost. Also ``token``, ``held`` (seconds), ``reason`` and ``expired``: True if no
renewal succeeded in time, False if another holder or an operator ended the lease. Sent once, in the
thread that noticed the loss: usually the heartbeat's."""

stale_write_refused = Signal()
"""A fenced write was refused. Also ``token``, ``model`` (its label), ``pk`` and ``reason``."""

idempotent_executed = Signal()
"""A request with an idempotency key was run, and its response is stored. Sent after COMMIT if the
package opened the transaction, else when the response is written.

The sender of this signal and of the next three is :class:`~django_dblock.IdempotencyKey`. They
carry ``scope``, ``key`` (the first characters of the key, never all), ``using`` and ``mode``.
"""

idempotent_replayed = Signal()
"""A request got the stored response of the first request; the view did not run."""

idempotent_refused = Signal()
"""A request was not run, or its run lost its lease to another run. Also ``code``, as in the
response: ``in_progress``, ``key_reused``, ``abandoned``, ``too_many_keys`` or ``not_replicated``.
Not sent if the key itself is missing or invalid."""

idempotent_taken_over = Signal()
"""A new run took over a request in lease mode; it continues after the recorded steps.

The previous run died, ended without a response to store (an error, a 5xx), or was freed by an
operator. Also ``token``: the new run's. Sent when the claim is committed, before the view runs.
"""
