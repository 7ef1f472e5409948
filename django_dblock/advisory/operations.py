"""What an operator does with a backend that blocks others: end its connection."""

from datetime import datetime

from django.db import ProgrammingError, transaction

from django_dblock.core.connection import connection_for, fetch
from django_dblock.core.logging import audit_log, doer
from django_dblock.exceptions import TerminationRefused
from django_dblock.sql import advisory as sql

_INSUFFICIENT_PRIVILEGE = "42501"
_LARGEST_PID = 2**31 - 1


def terminate_backend(
    pid: int,
    *,
    backend_start: datetime | None = None,
    by: str | None = None,
    using: str | None = None,
    blocking: bool = False,
) -> bool:
    """End the connection of a backend that holds an advisory lock or waits for one.

    Guaranteed: no other backend is ended, and never the caller's own. The statement that ends the
    backend checks once more, also in an open transaction, that the backend holds a lock of this
    database or waits for one. It also checks that the backend's connection began at
    ``backend_start``, because the system reuses process ids. What the backend has not committed is
    rolled back, and the next waiter in the queue gets its locks.

    Not guaranteed: that the backend has ended when this function returns; the server ends the
    backend as soon as the backend handles the signal. The program at the other end of the
    connection lives on, and may connect and lock again.

    Each backend that was signalled is logged as a warning by ``django_dblock.audit``.

    Args:
        pid: the backend's process id, as ``dblock list`` shows it.
        backend_start: when the backend's connection began, from
            :class:`django_dblock.inspect.AdvisoryLock`; if not given, the backend that has this
            process id now is ended.
        by: the user who does this, for the audit log; the database role if not given.
        using: the database alias, as in ``advisory_lock``.
        blocking: also end a backend without an advisory lock, if a session of this database waits
            for a lock of any type that the backend holds.

    Returns:
        Whether a backend was signalled; False if there is no such backend any more.

    Raises:
        TerminationRefused: the role may not end the backend, or may not see whether its connection
            is the same. Nothing is ended, and the caller's transaction is usable.
        TypeError, ValueError: before any SQL: ``pid`` is not a number, or can't be a process id.
        UnsupportedDatabase: the alias is not PostgreSQL.

    Source: PostgreSQL manual, 9.28.2 "Server Signaling Functions".
    """
    if not isinstance(pid, int):
        raise TypeError(f"pid must be an int, not {type(pid).__name__}.")
    if not 0 < pid <= _LARGEST_PID:
        raise ValueError(f"pid={pid!r} is not the number of a backend.")
    connection = connection_for(using)
    alias = connection.alias
    try:
        with transaction.atomic(using=alias):
            rows = fetch(
                connection,
                sql.TERMINATE,
                {"pid": pid, "backend_start": backend_start, "blocking": blocking},
            )
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise TerminationRefused(pid=pid, using=alias, reason=str(error).strip()) from error
    if not rows:
        return False
    [(_, user, application_name, began, signalled)] = rows
    if signalled is None:
        raise TerminationRefused(
            pid=pid, using=alias, reason="it may not see whether that is still the same connection"
        )
    if not signalled:  # the backend has ended by itself meanwhile
        return False
    who = doer(by, alias)
    audit_log.warning(
        "dblock: %s ended backend %s (%s, role %s) on %r: what it had not committed is rolled back",
        who, pid, application_name, user, alias,
        extra={
            "by": who, "pid": pid, "backend_start": began, "backend_user": user,
            "application_name": application_name, "using": alias,
        },
    )  # fmt: skip
    return True
