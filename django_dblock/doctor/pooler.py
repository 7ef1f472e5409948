"""Examine what stands between us and the server.

PgBouncer's manual: "pool_mode". A pooler tells its clients a process number of its own for the
cancelling of queries, so the driver's differs from what ``pg_backend_pid()`` says.
"""

from collections.abc import Iterator

from django_dblock.doctor.facts import Facts
from django_dblock.doctor.finding import Finding


def pooler_mode(facts: Facts) -> Iterator[Finding]:
    """Find a pooler, and for how long it lends a server connection."""
    if facts.isolation is None:
        yield Finding(
            "pooler-mode", "error",
            f"A pooler refuses transactions: {facts.refused}.",
            "Nothing works: a lock, a guard and an idempotent request are transactions.",
            "Set pool_mode = transaction (or session) in PgBouncer, for this database and user.",
        )  # fmt: skip
    elif not facts.session.pooled:
        yield Finding("pooler-mode", "ok", "No pooler in front of the server.")
    elif facts.shared:
        yield Finding("pooler-mode", "ok", "A pooler lends connections for a transaction each.")
    elif facts.shared is None:
        yield Finding(
            "pooler-mode", "info",
            "There is a pooler, and whether it lends connections for a transaction or for a "
            "session can't be told: it had none for a second client, or a transaction was open.",
            "Locks work in both modes. A pool that is used up makes everybody wait.",
            "Look at SHOW POOLS in the pooler's console: cl_waiting should be 0.",
        )  # fmt: skip
    else:
        yield Finding(
            "pooler-mode", "ok",
            "A pooler lends connections for a session each, as far as three looks can tell.",
        )  # fmt: skip


def pooler_cursors(facts: Facts) -> Iterator[Finding]:
    """Find server-side cursors, which need a session, where there is none."""
    if facts.shared and facts.server_side_cursors:
        yield Finding(
            "pooler-cursors", "warning",
            f"Database {facts.alias!r} uses server-side cursors through a pooler that lends "
            f"connections for a transaction.",
            "QuerySet.iterator() outside a transaction fails, or reads somebody else's cursor.",
            "Set DISABLE_SERVER_SIDE_CURSORS to True in the alias's settings.",
        )  # fmt: skip
