"""What happened, for logs and metrics. A receiver's error is logged by Django, never raised.

A receiver runs inside the lock's transaction, and should not query it: an error of a query would
end the transaction, though nobody sees it.

All are sent by the lock's class with ``kind`` (``"advisory"`` or ``"fenced"``), ``keys`` (a tuple
of keys), ``name`` (the same for people), ``using`` (the alias) and ``shared``; those of leases also
with ``token``.
"""

from django.dispatch import Signal

lock_acquired = Signal()
"""A lock was taken. Also ``waited`` (seconds; 0.0 where nobody was before us) and ``took`` (seconds
for all of it: that, and asking the server)."""

lock_released = Signal()
"""The transaction that a lock opened has ended. Also ``held`` (seconds, until the block was left,
so with its ``on_commit`` hooks) and ``committed``: None where leaving raised, because COMMIT was
refused, its answer was lost, or a hook failed.

Of a fenced lock: a lease was given back. Also ``held``, and ``lost``, whether it had ended before.

Not sent where the lock joined a transaction that was open already: nothing tells when that ends.
"""

lock_timeout = Signal()
"""A lock was not had in time. Also ``waited`` (seconds)."""

lock_deadlock = Signal()
"""A lock was not had because of a deadlock. Also ``waited`` (seconds)."""

lock_refused = Signal()
"""A lock was not had for another reason. Also ``error``, which is raised next: ``LockTableFull``,
``UnsafeIsolation``, ``StandbyDatabase``, ``UnsupportedDatabase``, ``NotReplicated`` or
``OpenTransaction``."""

stale_object = Signal()
"""A versioned row was not written, because it was changed or is gone; sent by the model's class.

With ``error``: the :class:`~django_dblock.StaleObject`, or for ``bulk_save_cas()`` the
:class:`~django_dblock.StaleObjects`, that is raised next (or reported).
"""

conflict_retried = Signal()
"""``@retry_on_conflict`` runs a function again; sent by the function.

Also ``error`` (what ended the last run), ``attempt`` (the number of the run that failed, from 1)
and ``delay`` (seconds until the next).
"""

lock_lost = Signal()
"""A fenced lock can't be trusted any longer. Also ``token``, ``held`` (seconds), ``reason``, and
``expired``: whether no renewal came in time, or else somebody took it. Sent once, by the thread
that noticed it: mostly the heartbeat's."""

stale_write_refused = Signal()
"""A fenced write was refused. Also ``token``, ``model`` (its label), ``pk`` and ``reason``."""

idempotent_executed = Signal()
"""A request with an idempotency key was run, and its answer is kept. Sent after the commit where
the transaction is ours, else when the answer is written.

This and the next three are sent by :class:`~django_dblock.IdempotencyKey` with ``scope``, ``key``
(its beginning, never the whole), ``using`` and ``mode``.
"""

idempotent_replayed = Signal()
"""A request got the answer that the first one got; nothing was run."""

idempotent_refused = Signal()
"""A request was not run, or its run has lost its lease to another. Also ``code``: as in the answer,
``in_progress``, ``key_reused``, ``abandoned`` or ``too_many_keys``. Not sent where the key itself
is missing or invalid."""

idempotent_taken_over = Signal()
"""A request in lease mode goes on in another run, after the steps that are recorded.

The run before has died, or has ended without an answer to keep (an error, a 5xx), or was freed by a
person. Also ``token``, that of the new run. Sent when its claim is committed, before the view runs.
"""
