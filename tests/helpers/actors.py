"""Actors: threads with connections of their own, which are stopped before each statement."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from django.db import connection, connections
from psycopg.pq import TransactionStatus

SEE_IT = "SET search_path = public, schedules, pg_catalog"
"""So that an actor sees the clock of :mod:`tests.helpers.schedules` before the server's."""


class Actor(threading.Thread):
    """A thread that does one job at a time, and stops before each statement."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.jobs: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self.arrived: queue.Queue[str | None] = queue.Queue()
        self.go: queue.Queue[None] = queue.Queue()
        self.at: str | None = None
        self.sent = True
        self.outcome: Any = None
        self.pid = 0
        self.open = False
        self.ended = False
        self.seen: tuple[Any, ...] = ()
        self.start()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            self._connect()
            self.arrived.put("begin")
            self.go.get()
            try:
                with connection.execute_wrapper(self._gate):
                    self.outcome = job()
            except BaseException as error:  # noqa: BLE001 - an outcome, to be judged
                self.outcome = error
            self.arrived.put(None)
        connections.close_all()

    def _connect(self) -> None:
        if self.ended or (connection.connection is not None and connection.connection.closed):
            connection.close()
        self.ended = False
        if connection.connection is None:
            with connection.cursor() as cursor:
                cursor.execute(SEE_IT)
                cursor.execute("SET statement_timeout = '60s'")
            self.pid = connection.connection.info.backend_pid
            for name in ("_commit", "_rollback"):
                setattr(connection, name, self._gated(name))

    def _gated(self, name: str) -> Callable[[], Any]:
        original = getattr(type(connections["default"]), name)
        wrapper = connections["default"]

        def gated() -> Any:
            driver = wrapper.connection
            if driver is not None and driver.info.transaction_status in (
                TransactionStatus.INTRANS,
                TransactionStatus.INERROR,
            ):
                self._wait_at(name)
            return original(wrapper)

        return gated

    def _gate(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self._wait_at(sql)
        return execute(sql, params, many, context)

    def _wait_at(self, sql: str) -> None:
        driver = connections["default"].connection
        self.open = driver is not None and (
            driver.info.transaction_status == TransactionStatus.INTRANS
        )
        self.arrived.put(" ".join(sql.split()[:60]))
        self.go.get()
