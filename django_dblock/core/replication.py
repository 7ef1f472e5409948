"""Commits that no synchronous standby has confirmed.

Where ``synchronous_standby_names`` is set, COMMIT waits for a standby. ``pg_cancel_backend()`` or
``statement_timeout`` can cut the wait short. Then the server has committed locally, sends a WARNING
and reports success. A failover can lose such a commit, so it must not be relied on.

PostgreSQL manual, 26.2.8 "Synchronous Replication"; ``SyncRepWaitForLSN()`` in the server's source.
"""

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.core.connection import ready, unwrapped

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic


class CommitWatch:
    """The count of unconfirmed commits on one connection of the driver.

    Attributes:
        unconfirmed: the number of commits of the connection, since the watch began, that no
            synchronous standby has confirmed.
    """

    def __init__(self) -> None:
        self.unconfirmed = 0

    def hear(self, notice: "Diagnostic") -> None:
        """Count a notice if it is the server's warning about a commit."""
        # The message is in the server's language. The function's name is not.
        if notice.source_function == "SyncRepWaitForLSN":
            self.unconfirmed += 1


# A pool lends the driver's connection to many wrappers, one after the other. The watch stays with
# the driver's connection, so that its handlers do not pile up.
_watches: "WeakKeyDictionary[Any, CommitWatch]" = WeakKeyDictionary()


def watch_commits(connection: BaseDatabaseWrapper) -> CommitWatch:
    """Return the watch of the connection; connect first if the connection is closed or dead.

    A later statement would replace a connection that is dead or that fails Django's health check,
    and the watch would not receive the notices of the new connection. In a transaction a dead
    connection is not replaced.
    """
    connection.close_if_health_check_failed()
    driver = connection.connection
    plain: Any = connection.Database.Connection  # type: ignore[attr-defined]
    # A proxy may not be hashable, so only the driver's own connection is looked up first.
    if type(driver) is plain and not driver.closed and (known := _watches.get(driver)) is not None:
        return known
    driver = ready(connection)
    driver = unwrapped(driver) or driver
    watch = _watches.get(driver)
    if watch is None:
        watch = _watches[driver] = CommitWatch()
        driver.add_notice_handler(watch.hear)
    return watch
