"""An exception of a signal handler that interrupts a block's way in, or its COMMIT."""

import signal
import threading
from contextlib import ExitStack

import pytest
from django.db import connections

from django_dblock import (
    advisory_lock,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    leadership,
    partitions,
    run_once,
    signals,
)
from django_dblock.core import simple_query
from django_dblock.fencing import store
from django_dblock.fencing.acquire import Attempt
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.models import FencedTicket
from tests.app.models import Counter
from tests.helpers import observe
from tests.helpers.processes import process
from tests.helpers.relay import relay

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


class TimeLimit(Exception):
    """As Celery's soft time limit, after which the worker goes on."""


def elected(stack):
    terms = iter(leadership("a", ttl=600))
    stack.callback(terms.close)
    return next(terms)


ENTER = {
    "fenced_lock": lambda stack: stack.enter_context(fenced_lock("a", ttl=600)),
    "fair": lambda stack: stack.enter_context(fenced_lock("a", ttl=600, fair=True)),
    "fenced_semaphore": lambda stack: stack.enter_context(
        fenced_semaphore("a", permits=3, units=2, ttl=600)
    ),
    "leadership": elected,
    "rwlock.read": lambda stack: stack.enter_context(fenced_rwlock("a").read(ttl=600)),
    "rwlock.write": lambda stack: stack.enter_context(fenced_rwlock("a").write(ttl=600)),
    "partitions": lambda stack: stack.enter_context(partitions("a", count=2, ttl=600)),
}

HELD = "SELECT count(*) FROM django_dblock_fencedlock WHERE expires_at > clock_timestamp()"


def held(observer):
    return observer.execute(HELD).fetchone()[0]


def enter_and_go_on(channel, kind, error, wrappers=()):
    """Enter a block; tell when the signal has come and when entering has ended."""
    connections["default"].execute_wrappers += wrappers

    def handler(*_):
        channel.send("signal")
        raise error

    signal.signal(signal.SIGTERM, handler)
    try:
        ENTER[kind](ExitStack())
    except error:
        channel.send((len(heartbeat.of("default")._due), error.__name__))
    channel.receive()  # the process lives on


def passing_on(execute, *arguments):
    """An execute wrapper, with which every statement goes through the ordinary cursor."""
    return execute(*arguments)


@pytest.mark.processes
@pytest.mark.parametrize("error", [TimeLimit, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("kind", "wrappers"), [*((kind, []) for kind in ENTER), ("fenced_lock", [passing_on])]
)
def test_signal_between_commit_and_result_releases_the_grant(kind, wrappers, error, observer):
    with ExitStack() as stack:
        ENTER[kind](stack)  # the rows are there
    port = connections["default"].settings_dict["PORT"]
    with (
        relay(int(port), b"'acquired'") as line,
        process(
            enter_and_go_on, kind, error, wrappers, options={"HOST": "127.0.0.1", "PORT": line.port}
        ) as child,
    ):
        observe.until(lambda: held(observer), "the grant is committed")
        child.signal(signal.SIGTERM)
        assert child.receive() == "signal"
        line.let_through()
        assert child.receive() == (0, error.__name__)
        assert held(observer) == 0
        child.send("end")


@pytest.mark.processes
def test_signal_between_commit_and_result_deletes_the_ticket(observer):
    port = connections["default"].settings_dict["PORT"]
    with (
        fenced_lock("a", ttl=600),
        relay(int(port), b"INSERT INTO django_dblock_fencedticket") as line,
        process(wait_in_turn, TimeLimit, options={"HOST": "127.0.0.1", "PORT": line.port}) as child,
    ):
        observe.until(FencedTicket.objects.exists, "the ticket is committed")
        child.signal(signal.SIGTERM)
        assert child.receive() == "signal"
        line.let_through()
        assert child.receive() == "ended"
        assert not FencedTicket.objects.exists()


def wait_in_turn(channel, error):
    def handler(*_):
        channel.send("signal")
        raise error

    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(error), fenced_lock("a", ttl=600, timeout=None, fair=True):
        pass
    channel.send("ended")


@pytest.fixture
def interrupted(observer):
    """Run an act in this thread, over a line that holds an answer back; raise an error in it."""

    def run(act, held_back, committed, error, afterwards=lambda: None):
        raised = threading.Event()

        def handler(*_):
            raised.set()
            raise error

        def when_committed():
            observe.until(committed, "it is committed")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            raised.wait()
            line.let_through()

        before = signal.signal(signal.SIGUSR1, handler)
        with relay(int(direct["PORT"]), held_back) as line:
            connection.settings_dict.update(HOST="127.0.0.1", PORT=line.port)
            thread = threading.Thread(target=when_committed)
            thread.start()
            try:
                with pytest.raises(error):
                    act()
            finally:
                thread.join()
                signal.signal(signal.SIGUSR1, before)
            afterwards()
            connection.close()
            connection.settings_dict.update(direct)

    connection = connections["default"]
    connection.close()
    direct = {name: connection.settings_dict[name] for name in ("HOST", "PORT")}
    yield run
    connection.close()
    connection.settings_dict.update(direct)


@pytest.mark.parametrize("error", [TimeLimit, KeyboardInterrupt])
class TestInThisProcess:
    """The same, where one can look inside."""

    @pytest.mark.parametrize("kind", ["fenced_lock", "fenced_semaphore", "rwlock.write"])
    def test_interrupted_entry_releases_the_grant(self, kind, error, interrupted, observer):
        with ExitStack() as stack:
            ENTER[kind](stack)
        connections["default"].close()
        enter = lambda: ENTER[kind](ExitStack())  # noqa: E731
        interrupted(enter, b"'acquired'", lambda: held(observer), error)
        assert nothing_is_left(observer)

    def test_interrupted_wait_deletes_the_ticket(self, error, interrupted, observer, rival):
        rival.execute(
            "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at,"
            " renewed_at, expires_at, lock_delay, grants, metadata) VALUES ('a', 0, 1, '', now(),"
            " now(), now() + interval '1 hour', interval '0', 1, '{}')"
        )
        tickets = "SELECT count(*) FROM django_dblock_fencedticket"
        count = lambda: observer.execute(tickets).fetchone()[0]  # noqa: E731

        def enter():
            with fenced_lock("a", ttl=600, timeout=None, fair=True):
                pass

        interrupted(enter, b"INSERT INTO django_dblock_fencedticket", count, error)
        assert count() == 0

    @pytest.mark.usefixtures("long_period")
    def test_interrupted_entry_by_a_prepared_statement_releases_the_grant(
        self, error, interrupted, observer
    ):
        def enter():
            for _ in range(simple_query._PREPARE_AFTER + 2):
                with fenced_lock("a", ttl=600):
                    pass
            fenced_lock("a", ttl=600, metadata={"held": "back"}).__enter__()

        granted = "SELECT count(*) FROM django_dblock_fencedlock WHERE metadata ? 'held'"
        count = lambda: observer.execute(granted).fetchone()[0]  # noqa: E731
        interrupted(enter, b'"back"', count, error)
        assert nothing_is_left(observer)

    @pytest.mark.usefixtures("long_period")
    def test_interrupted_preparation_returns_no_rows(self, error, interrupted, observer):
        """What asks for the server's process id returns a row of its own."""
        rows = []
        ask = (connections["default"], "SELECT %(a)s::int", {"a": 1}, rows)

        def prepare():
            connections["default"].connect()
            for _ in range(simple_query._PREPARE_AFTER + 1):
                rows.clear()
                simple_query.fetch_directly(*ask)

        query = (
            "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_backend_pid()'"
            " AND query_start > %s"
        )
        since = observer.execute("SELECT clock_timestamp()").fetchone()
        asked = lambda: observer.execute(query, since).fetchone()  # noqa: E731
        interrupted(prepare, b"pg_backend_pid", asked, error)
        assert rows == []


@pytest.mark.parametrize("error", [TimeLimit, KeyboardInterrupt])
class TestCommit:
    """The error is raised as it is, and the connection can be used: Django manages neither."""

    def test_lock_interrupted_at_commit_leaves_connection_usable(
        self, error, interrupted, observer
    ):
        def write(name="a"):
            with advisory_lock("a", timeout=0):
                Counter.objects.create(name=name)

        count = lambda: observer.execute("SELECT count(*) FROM app_counter").fetchone()[0]  # noqa: E731
        interrupted(write, b"COMMIT", count, error, afterwards=lambda: write("b"))
        assert count() == 2

    def test_guard_interrupted_at_commit_leaves_connection_usable(
        self, error, interrupted, observer
    ):
        def write(name="a"):
            with lease.guard():
                Counter.objects.create(name=name)

        count = lambda: observer.execute("SELECT count(*) FROM app_counter").fetchone()[0]  # noqa: E731
        with fenced_lock("a", ttl=600) as lease:
            connections["default"].close()
            interrupted(write, b"COMMIT", count, error, afterwards=lambda: write("b"))
        assert count() == 2

    REQUESTS = "SELECT count(*) FROM django_dblock_idempotencykey"

    @pytest.mark.parametrize("refuses", ["takeover", "refuse"])
    def test_claim_interrupted_at_commit_is_given_up(self, refuses, error, interrupted, observer):
        """So the next try runs at once, although it was committed."""

        def settle():
            return run_once("settle", work=lambda _: 1, mode="lease", on_abandoned=refuses)

        def afterwards():
            assert settle() == 1

        count = lambda: observer.execute(self.REQUESTS).fetchone()[0]  # noqa: E731
        interrupted(settle, b"COMMIT", count, error, afterwards)

    def test_response_interrupted_at_commit_is_replayed(self, error, interrupted, observer):
        ran = []

        def settle():
            with connection.execute_wrapper(passing_on):  # COMMIT is Django's own
                return run_once("settle", work=lambda: ran.append(1))

        connection = connections["default"]
        count = lambda: observer.execute(self.REQUESTS).fetchone()[0]  # noqa: E731
        interrupted(settle, b"COMMIT", count, error, afterwards=settle)
        assert ran == [1]


@pytest.fixture(params=[TimeLimit, SystemExit])
def error(request):
    return request.param


def nothing_is_left(observer):
    """No lease is held, and the heartbeat renews none: this process lives on."""
    return not heartbeat.of("default")._due and held(observer) == 0


@pytest.mark.parametrize("kind", ENTER)
def test_exit_in_a_receiver_of_the_grant_releases_it(kind, observer):
    def exits(**_):
        raise SystemExit  # send_robust() catches Exception only

    signals.lock_acquired.connect(exits)
    try:
        with pytest.raises(SystemExit):
            ENTER[kind](ExitStack())
    finally:
        signals.lock_acquired.disconnect(exits)
    assert nothing_is_left(observer)


@pytest.mark.parametrize("kind", ["fenced_lock", "fenced_semaphore", "leadership", "rwlock.write"])
def test_interruption_after_the_grant_releases_it(kind, error, monkeypatch, observer):
    def close(attempt):
        raise error

    monkeypatch.setattr(Attempt, "close", close)
    with pytest.raises(error):
        ENTER[kind](ExitStack())
    assert nothing_is_left(observer)


def test_interruption_just_before_the_release_ends_the_renewals(error, monkeypatch):
    """Else a worker that goes on would renew the lease as long as it lives."""

    def refuse(*_):
        raise error

    with pytest.raises(error), fenced_lock("a", ttl=600):
        monkeypatch.setattr(store, "refuse_transaction", refuse)
    assert not heartbeat.of("default")._due
