"""What is left when a trial is over: locks, leases, connections, threads, workers that hang."""

from time import sleep
from typing import Any

from tests.faults import checkers
from tests.faults.checkers import Violation
from tests.faults.clock import now
from tests.faults.evidence import Connection
from tests.faults.plan import HOLDS, Trial

_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
_CONNECTIONS = """
SELECT format('%%s (%%s), begun %%s, %%s %%s: %%s', pid,
    coalesce(nullif(application_name, ''), '?'), backend_start, state, wait_event, left(query, 100))
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND (application_name LIKE %s) IS NOT TRUE
ORDER BY pid
"""
_LEASES = """
SELECT name FROM django_dblock_fencedlock
WHERE expires_at + lock_delay > clock_timestamp() AND position(%(trial)s IN name) > 0
UNION ALL
SELECT key FROM django_dblock_idempotencykey
WHERE locked_until > clock_timestamp() AND starts_with(key, %(trial)s || '-')
"""


def judge(
    database: Connection,
    trial: Trial,
    notes: list[dict[str, Any]],
    hung: list[str],
    *,
    clock: bool,
    others: str | None,
) -> list[Violation]:
    """Judge ours; a peer is judged by its numbers alone.

    Args:
        clock: whether the server's clock can be trusted.
        others: a LIKE pattern of the names of those connections that are not the workers'.
    """
    if trial.expected != HOLDS:
        return []
    deadline = now() + trial.ttl + 1
    while True:
        [(locks,)] = database.execute(_LOCKS).fetchall()
        connections = [text for (text,) in database.execute(_CONNECTIONS, [others])]
        held = (
            [name for (name,) in database.execute(_LEASES, {"trial": trial.name})] if clock else []
        )
        if now() > deadline or not (locks or connections or held):
            break
        sleep(0.05)
    threads = [name for note in notes if note["kind"] == "end" for name in note["threads"]]
    found = checkers.rest(locks=locks, held=held, threads=threads, connections=connections)
    return found + [Violation(6, f"{worker} hangs") for worker in hung]
