"""What an operator does to a backend that keeps others from a lock: end it."""

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
    """End the connection of a backend that holds or waits for an advisory lock; whether one was.

    Guaranteed: no other backend is ended. The statement that ends it looks once more, also in an
    open transaction, that this one has a lock of this database or waits for one, and that it is
    still the connection that began at ``backend_start``: the system uses numbers of processes
    again. What it has not committed is rolled back, and the next in the queue gets its locks.

    Not guaranteed: that it has ended when this returns; the server ends it as soon as it listens.
    The program at its other end lives on, and may connect and lock again. One's own is never ended.

    Each one that is told is logged as a warning by ``django_dblock.audit``.

    Args:
        pid: the backend's, as ``dblock list`` shows it.
        backend_start: when the connection began that was seen, as it stands in
            :class:`django_dblock.inspect.AdvisoryLock`; if not given, any that has this number now.
        by: who does this, for the audit log; the database role if not given.
        using: the database alias, as in ``advisory_lock``.
        blocking: also a backend without an advisory lock, if a session of this database waits for
            a lock of any type that the backend holds.

    Raises:
        TerminationRefused: the role may not end it, or not see that it is the same; nothing is
            ended, and the caller's transaction is usable.
        ValueError: the number can't be a backend's; before any SQL.
        UnsupportedDatabase: the alias is not PostgreSQL's.

    Source: PostgreSQL manual, 9.28.2 "Server Signaling Functions".
    """
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
    [(_, user, application_name, began, told)] = rows
    if told is None:
        raise TerminationRefused(
            pid=pid, using=alias, reason="it may not see whether that is still the same connection"
        )
    if not told:  # it ended in the meantime by itself
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
