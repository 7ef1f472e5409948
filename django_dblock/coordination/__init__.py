"""Semaphores, read-write locks, leadership, scheduled jobs, partitions and latches.

No tool has a lease protocol of its own. Each tool uses one of these:

- *Rows of the lease protocol* (:mod:`django_dblock.fencing`): a row is (name, slot), a grant is
  (name, slot, token). ``fenced_semaphore`` takes any free slot of n. ``fenced_rwlock`` has one slot
  for the writer and one for each reader. ``leadership`` takes slot 0 again and again.
  ``partitions`` has one slot for each partition, and one for each worker. So expiry, renewal by the
  process's one heartbeat, ``check()``, ``guard()``, release by an operator, ``dblock list`` and
  ``dblock purge`` are the same code and the same statements for all leases.
- *Transaction-scoped advisory locks*: ``advisory_semaphore``.
- ``run_once``: ``once_per`` makes the period a part of the key.
- *A row for each part, written in the part's own transaction*: ``latch``.

In the table, a lease's name ends in ``~semaphore``, ``~rwlock``, ``~leader``, ``~partition`` or
``~worker``. No key of ``fenced_lock`` has such a name (:mod:`django_dblock.fencing.lease_name`),
so ``fenced_lock("x")`` and ``fenced_semaphore("x", …)`` are independent of each other.

All leases have the same guarantee: the database checks that you still hold the lease inside the
transaction that commits your work. Redis, ZooKeeper and etcd can't check that, because your rows
are in another system.
"""
