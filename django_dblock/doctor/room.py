"""Examine the lock table of the server.

PostgreSQL manual: 20.12 "Lock Management".
"""

from collections.abc import Iterator

from django_dblock.doctor.facts import Facts
from django_dblock.doctor.finding import Finding

_TIGHT, _FULL = 0.5, 0.9
_FOLLOWS = (
    "When it is full, nobody on the server gets a lock, tables' included: LockTableFull here, "
    "'out of shared memory' elsewhere."
)
_DO = (
    "Lock fewer keys in one transaction; or raise max_locks_per_transaction (needs a restart, on "
    "standbys first)."
)


def lock_table(facts: Facts) -> Iterator[Finding]:
    """Compare the places taken with those that the settings promise."""
    table = facts.lock_table
    room = facts.number("max_locks_per_transaction") * (
        facts.number("max_connections") + facts.number("max_prepared_transactions")
    )
    share = table.used / room
    shown = f"{table.used:,} of about {room:,} places for locks are taken ({share:.0%})."
    if share < _TIGHT:
        yield Finding("lock-table", "ok", shown)
        return
    who = (
        "a prepared transaction"
        if table.pid is None
        else f"backend {table.pid} (role {table.role}, {table.application_name!r})"
    )
    yield Finding(
        "lock-table",
        "error" if share >= _FULL else "warning",
        f"{shown} Most locks, {table.most:,}, are those of {who}.",
        _FOLLOWS,
        _DO,
    )


def lock_table_full(said: str) -> Finding:
    """Say that there was no room left for the questions themselves."""
    return Finding("lock-table", "error", f"No place for a lock is left: {said}", _FOLLOWS, _DO)
