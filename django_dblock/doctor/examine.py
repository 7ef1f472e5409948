"""Examine one database: everything, in the order in which it matters."""

from collections.abc import Callable, Iterator

from django.db import DatabaseError, InterfaceError

from django_dblock.core.connection import connection_for
from django_dblock.doctor import server, tables, timeouts
from django_dblock.doctor.facts import Facts, gather, version
from django_dblock.doctor.finding import Finding
from django_dblock.doctor.server import lock_table, lock_table_full, pooler_cursors, pooler_mode
from django_dblock.doctor.tables import oldest_transaction, table_bloat
from django_dblock.exceptions import UnsupportedDatabase

EXAMINATIONS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    server.server_version,
    server.standby,
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
    server.synchronous_commit,
    server.clock,
)


def examine(using: str | None = None) -> list[Finding]:
    """Ask the database of an alias, and say what is well and what is not.

    The same few statements always, whatever is locked; waits for no lock, changes nothing. A
    picture of a moment. What stops the asking, no connection or another engine, is a finding, too.

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
    said = str(error).strip()
    if "max_locks_per_transaction" in said:  # the hint's setting, in every language
        return lock_table_full(said)
    return Finding(
        "connection",
        "error",
        f"Database {alias!r} can't be asked: {said}",
        "No lock can be had there.",
        "Look at the alias's HOST, PORT, USER and NAME, and at the server's log.",
    )
