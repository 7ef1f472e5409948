"""The acquirer's books: one SQLite file, one row for each charge."""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS charge (
    id TEXT PRIMARY KEY,
    amount INTEGER NOT NULL CHECK (amount > 0),
    currency TEXT NOT NULL,
    reference TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    created_at TEXT NOT NULL
)
"""
_INSERT = """
INSERT INTO charge (id, amount, currency, reference, idempotency_key, created_at)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (idempotency_key) DO NOTHING
"""
_BY_KEY = "SELECT * FROM charge WHERE idempotency_key = ?"
_BY_ID = "SELECT * FROM charge WHERE id = ?"
_ALL = "SELECT * FROM charge ORDER BY rowid"


class KeyReused(Exception):
    """The idempotency key belongs to a charge of something else."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a merchant asks for; the amount is in the currency's smallest unit."""

    amount: int
    currency: str
    reference: str


class Books:
    def __init__(self, file: Path) -> None:
        self._file = file
        with self._open() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_SCHEMA)

    def charge(self, request: Request, key: str | None) -> tuple[dict[str, Any], bool]:
        """Book a charge and return it, and whether it is new.

        The same key again returns the first charge and books nothing.
        """
        number = f"ch_{uuid.uuid4().hex}"
        now = datetime.now(UTC).isoformat()
        row = (number, request.amount, request.currency, request.reference, key, now)
        with self._open() as connection:
            if connection.execute(_INSERT, row).rowcount:
                return dict(connection.execute(_BY_ID, [number]).fetchone()), True
            first = dict(connection.execute(_BY_KEY, [key]).fetchone())
        if Request(first["amount"], first["currency"], first["reference"]) != request:
            raise KeyReused
        return first, False

    def charges(self) -> list[dict[str, Any]]:
        with self._open() as connection:
            return [dict(row) for row in connection.execute(_ALL)]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # SQLite's connections belong to their thread, and each request has a thread.
        with closing(sqlite3.connect(self._file, timeout=10)) as connection, connection:
            connection.row_factory = sqlite3.Row
            yield connection
