"""Sessions that really hold locks and really wait for them, each on a connection of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from django_dblock.keys import encode, key_id
from django_dblock.labels import named, label
from tests.helpers import observe


class Stage:
    """Opens sessions; all are closed at its end, those that wait by ending their backends."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._opened: list[psycopg.Connection[Any]] = []
        self.observer = self.session("observer")

    def session(self, program: str = "shop", **changes: Any) -> psycopg.Connection[Any]:
        conninfo = psycopg.conninfo.make_conninfo(
            self._conninfo, application_name=program, **changes
        )
        self._opened.append(psycopg.connect(conninfo, autocommit=True))
        return self._opened[-1]

    def hold(self, session: psycopg.Connection[Any], *keys: tuple[Any, ...], shared: bool = False):
        """Lock keys in a transaction, with their labels, as advisory_locks() does."""
        if session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            session.execute("BEGIN")
        self._label(session, keys)
        for key in keys:
            session.execute(self._statement(key, shared=shared))

    def want(self, session: psycopg.Connection[Any], *key: Any, shared: bool = False) -> None:
        """Send the statement, and see it wait."""
        if session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            session.execute("BEGIN")
        self._label(session, (key,))
        session.pgconn.send_query(self._statement(key, shared=shared).encode())
        pid = session.info.backend_pid
        observe.until(lambda: pid in observe.waiting(self.observer), f"{pid} waits")

    def _label(self, session: psycopg.Connection[Any], keys: Any) -> None:
        [before] = session.execute("SELECT current_setting('application_name')").fetchone() or [""]
        base, _, old = before.partition(" lock[")
        texts = [each for each in old.rstrip("]").split() if each]
        texts += [label(named(key), self._number(key), "full") for key in keys]
        text = f"{base} lock[{' '.join(texts)}]"
        if len(text) <= 63:
            session.execute("SELECT set_config('application_name', %s, true)", [text])

    def _statement(self, key: tuple[Any, ...], *, shared: bool) -> str:
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        return f"SELECT {function}({self._number(key)})"

    @staticmethod
    def _number(key: tuple[Any, ...]) -> int:
        return key_id(encode(key))

    def close(self) -> None:
        pids = [session.info.backend_pid for session in self._opened[1:] if not session.closed]
        self.observer.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
        for session in self._opened:
            session.close()


@contextmanager
def stage(conninfo: str) -> Iterator[Stage]:
    found = Stage(conninfo)
    try:
        yield found
    finally:
        found.close()
