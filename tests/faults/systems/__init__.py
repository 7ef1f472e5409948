"""What the workloads lock with: ours, and peers.

A system of locks is a module with ``hold(worker, name)``, a context manager that yields a
:class:`~tests.faults.systems.held.Held`, and ``ERRORS``, what it raises beside the database's.
"""
