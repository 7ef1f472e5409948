"""Examine one database: all examinations, the most important first."""

from collections.abc import Callable, Iterator

from django.db import DatabaseError, InterfaceError

from django_dblock.core.connection import connection_for
from django_dblock.doctor import coordination, server, tables, timeouts
from django_dblock.doctor.facts import Facts, gather, version
from django_dblock.doctor.finding import Finding
from django_dblock.doctor.server import lock_table, lock_table_full, pooler_cursors, pooler_mode
from django_dblock.doctor.tables import oldest_transaction, table_bloat
from django_dblock.exceptions import UnsupportedDatabase

EXAMINATIONS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    server.server_version,
    server.standby,
    server.read_only,
    pooler_mode,
    pooler_cursors,
    server.isolation,
    tables.migration,
    tables.privileges,
    tables.visibility,
    lock_table,
    timeouts.hung_client,
    timeouts.vanished_client,
    timeouts.waiting_client,
    timeouts.time_limits,
    table_bloat,
    oldest_transaction,
    coordination.partitions,
    coordination.unattended,
    coordination.latches,
    coordination.jobs,
    server.synchronous_commit,
    server.clock,
)


def examine(using: str | None = None) -> list[Finding]:
    """Examine the database of an alias; return what is in order and what is not.

    Guaranteed: the examination sends the same few statements, however many locks there are. It
    waits for no lock and changes nothing. If the database can't be reached, or is of another
    engine, that is a finding, too.

    Not guaranteed: that the findings still hold when they are returned.

    Args:
        using: the database alias, as in :func:`django_dblock.advisory_lock`.

    Raises:
        ConnectionDoesNotExist: there is no such alias.
    """
    try:
        connection = connection_for(using)
    except UnsupportedDatabase as error:
        return [server.foreign(error.using, error.engine, "as its ENGINE says.")]
    try:
        said = version(connection)
        if refused := list(server.engine(connection.alias, said)):
            return refused
        facts = gather(connection, said)
    except (DatabaseError, InterfaceError) as error:
        return [_unreachable(connection.alias, error)]
    return [finding for examination in EXAMINATIONS for finding in examination(facts)]


def _unreachable(alias: str, error: Exception) -> Finding:
    said = " ".join(str(error).split())  # libpq breaks lines and indents
    if "max_locks_per_transaction" in said:  # the hint's setting, in every language
        return lock_table_full(said)
    return Finding(
        "connection",
        "error",
        f"Database {alias!r} can't be queried: {said}",
        "Locks can't be acquired there.",
        "Check the alias's HOST, PORT, USER and NAME, and the server's log.",
    )
