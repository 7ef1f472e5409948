"""Sessions that really hold locks and really wait for them, each on a connection of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from django_dblock.core.application_name import compose, label, named
from django_dblock.keys import encode, key_id
from tests.helpers import observe


class Stage:
    """Opens sessions; all are closed at its end, those that wait by ending their backends."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self.namespace = ""
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
        [before] = session.execute("SELECT current_setting('application_name')").fetchone()
        text = compose(before, [label(named(key), self._number(key), "full") for key in keys])
        session.execute("SELECT set_config('application_name', %s, true)", [text])

    def _statement(self, key: tuple[Any, ...], *, shared: bool) -> str:
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        return f"SELECT {function}({self._number(key)})"

    def _number(self, key: tuple[Any, ...]) -> int:
        return key_id(encode(key), self.namespace)

    def close(self) -> None:
        pids = [session.info.backend_pid for session in self._opened[1:] if not session.closed]
        self.observer.execute(
            "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids]
        )
        for session in self._opened:
            session.close()


@contextmanager
def stage(conninfo: str) -> Iterator[Stage]:
    found = Stage(conninfo)
    try:
        yield found
    finally:
        found.close()


def busy(stage: Stage) -> dict[str, psycopg.Connection[Any]]:
    """A shop at a bad moment: a view that hangs in a transaction, and what that leads to."""
    found = {name: stage.session(name) for name in ("gunicorn", "celery", "import", "migrate")}
    stage.hold(found["gunicorn"], ("inventory", "sku-1"))
    found["gunicorn"].execute("SELECT 42 AS stock  -- shop/purchase.py: is it in stock?")
    stage.hold(found["import"], *[("product", number) for number in range(1, 41)])
    found["import"].execute("SELECT count(*) FROM pg_class  -- manage.py import_products")
    for number in (1, 2):
        found[f"report {number}"] = stage.session("report")
        stage.hold(found[f"report {number}"], ("catalogue",), shared=True)
    stage.hold(found["celery"], ("order", 17))
    stage.want(found["celery"], "inventory", "sku-1")
    stage.want(found["migrate"], "catalogue")
    found["mailer"] = stage.session("mailer")
    stage.want(found["mailer"], "order", 17)
    for number in range(1, 9):
        found[f"gunicorn {number}"] = stage.session("gunicorn")
        stage.want(found[f"gunicorn {number}"], "inventory", "sku-1")
    return found


LEASE = """
INSERT INTO django_dblock_fencedlock (
    name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata
)
SELECT
    %(name)s, 0, 1767225600000 + %(age)s::int, %(owner)s, now() - %(age)s * interval '1 second',
    now() - %(renewed)s * interval '1 second', now() + %(left)s * interval '1 second',
    %(delay)s * interval '1 second', 9, %(metadata)s::jsonb
"""

TICKET = """
INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)
VALUES (%s, 0, %s, now() + interval '1 hour')
"""


def lease(observer: psycopg.Connection[Any], name: str, **facts: Any) -> None:
    """A row as the protocol would leave it."""
    facts = {
        "owner": "worker-1:812:MainThread", "age": 60, "renewed": 3, "left": 27, "delay": 0,
        "metadata": "{}", "name": name, **facts,
    }  # fmt: skip
    observer.execute(LEASE, facts)


def leases(observer: psycopg.Connection[Any]) -> None:
    """One that is well, one that nobody renews and others wait for, one that is kept back."""
    lease(observer, "nightly-sync", age=754, metadata='{"job": "settle", "build": "2026.11.3"}')
    lease(observer, "rebuild-search", age=4210, owner="worker-2:77:MainThread", renewed=48, left=12)
    lease(observer, "warm-cache", age=95, renewed=65, left=-35, delay=90)
    for owner in ("worker-3:204:MainThread", "worker-1:812:Thread-3"):
        observer.execute(TICKET, ["rebuild-search", owner])


def requests() -> None:
    """One at work, one whose worker is gone."""
    from tests.idempotency import rows

    rows.unfinished("4f1c2a90-77", path="/api/payments/", owner="web-1:3001:worker-0")
    rows.abandoned("9b07e1d4-12", path="/api/payments/", owner="web-2:2950:worker-1")
