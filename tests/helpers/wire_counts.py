"""Count what one operation costs, at the wire and at the server, whatever backend sends it."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from django.db import connections

_COMMAND_COMPLETE, _ERROR, _READY = b"C", b"E", b"Z"


@dataclass
class Counts:
    """What was counted.

    Attributes:
        statements: results of commands, COMMIT and the like included.
        round_trips: times that the server was ready again; several statements can share one.
        transactions: transaction ids that were spent: each is a commit that writes.
        wal: bytes of WAL.
        updates: rows updated, in all tables of the schema.
        hot: of these, rows that no index was written for.
    """

    statements: int = 0
    round_trips: int = 0
    transactions: int = 0
    wal: int = 0
    updates: int = 0
    hot: int = 0


class Tap:
    """A proxy before the server that reads the types of the server's messages."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.types: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._upstream)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            threading.Thread(target=self._read, args=(server, client), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with closing(source), closing(target):
            try:
                while data := source.recv(65_536):
                    target.sendall(data)
            except OSError:
                return

    def _read(self, server: socket.socket, client: socket.socket) -> None:
        """Note each message's type before the client has the message."""
        pending = b""
        try:
            while data := server.recv(65_536):
                pending += data
                while len(pending) >= 5:
                    [length] = struct.unpack("!I", pending[1:5])
                    if len(pending) < 1 + length:
                        break
                    self.types.append(pending[:1])
                    pending = pending[1 + length :]
                client.sendall(data)
        except OSError:
            return


@contextmanager
def tapped() -> Iterator[Tap]:
    """Lead the default alias through a tap; its settings are as before at the end."""
    settings = connections.settings["default"]
    before = {name: settings[name] for name in ("HOST", "PORT", "OPTIONS")}
    tap = Tap(settings["HOST"], int(settings["PORT"]))
    plain = {"sslmode": "disable", "gssencmode": "disable"}
    settings.update(HOST="127.0.0.1", PORT=tap.port, OPTIONS={**before["OPTIONS"], **plain})
    try:
        yield tap
    finally:
        settings.update(before)
        tap.close()


@contextmanager
def counted(tap: Tap, looking: psycopg.Connection[Any]) -> Iterator[Counts]:
    """Fill the yielded counts at the end of the block."""
    counts = Counts()
    _tell_statistics()
    before = _server(looking)
    first = len(tap.types)
    yield counts
    types = tap.types[first:]
    counts.statements = types.count(_COMMAND_COMPLETE) + types.count(_ERROR)
    counts.round_trips = types.count(_READY)
    _tell_statistics()
    after = _server(looking)
    counts.transactions, counts.wal, counts.updates, counts.hot = (
        int(new - old) for new, old in zip(after, before, strict=True)
    )


def _tell_statistics() -> None:
    """Let the backend publish what it has counted, which it does once a second otherwise."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")


def _server(looking: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """Spent transaction ids, bytes of WAL, updates, and heap-only updates so far."""
    looking.execute("SELECT pg_stat_clear_snapshot()")
    found = looking.execute(
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,"
        " pg_current_wal_insert_lsn() - '0/0', sum(n_tup_upd), sum(n_tup_hot_upd)"
        " FROM pg_stat_user_tables"
    ).fetchone()
    assert found is not None
    return found
