"""How a lease's statements end: with an error, interrupted, or on a standby."""

import signal
import threading

import pytest
from django.db import Error, connection

from django_dblock import StandbyDatabase, fenced_lock
from django_dblock.core import simple_query
from django_dblock.core.application_name import named
from django_dblock.fencing import store
from tests.helpers import observe

pytestmark = pytest.mark.django_db(transaction=True)

PLACE = store.Place(named(("a",)), "a", "default")


def alone(statement):
    store.run(PLACE, "ended", statement, {})


def through_the_cursor(statement):
    """As where an execute wrapper sees every statement."""
    with connection.execute_wrapper(lambda execute, *arguments: execute(*arguments)):
        alone(statement)


def in_one_message(statement):
    store.durable_together(PLACE, "taken", [statement], {}, [])


def one_by_one(statement):
    """As where the driver's cursor takes one statement at a time."""
    connection.settings_dict["OPTIONS"]["server_side_binding"] = True
    try:
        store.durable_together(PLACE, "taken", [statement], {}, [])
    finally:
        del connection.settings_dict["OPTIONS"]["server_side_binding"]


@pytest.mark.parametrize("send", [alone, through_the_cursor, in_one_message, one_by_one])
def test_interrupted_statement_is_cancelled(send, observer):
    """As by Celery's soft time limit: the server must not go on waiting for nobody."""

    class TimeLimit(Exception):
        pass

    def interrupt(*_):
        raise TimeLimit

    def sleeps():
        asked = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        return observer.execute(asked, [pid]).fetchone() is not None

    def interrupt_the_sleep():
        observe.until(sleeps, "the statement sleeps")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    old = signal.signal(signal.SIGALRM, interrupt)
    interrupting = threading.Thread(target=interrupt_the_sleep)
    interrupting.start()
    try:
        with pytest.raises(TimeLimit):
            send("SELECT pg_sleep(600)")
    finally:
        interrupting.join()
        signal.signal(signal.SIGALRM, old)
    observe.until(lambda: not sleeps(), "nobody sleeps")
    with fenced_lock("a", ttl=30):
        """The connection is of use again."""


@pytest.mark.parametrize("send", [in_one_message, one_by_one])
def test_failing_pipeline_raises_the_servers_error(send):
    with pytest.raises(Error, match="division by zero"):
        send("SELECT 1 / 0")


def test_pipelined_statements_report_a_standby(monkeypatch):
    monkeypatch.setattr(store, "_is_standby", lambda connection, error: True)
    with pytest.raises(StandbyDatabase, match="is a standby"):
        in_one_message("SELECT 1 / 0")


def test_memory_of_names_is_bounded(monkeypatch):
    monkeypatch.setattr(simple_query, "_MOST_HINTS", 1)
    for name in ("a", "b"):
        with fenced_lock(name, ttl=60):
            pass
    assert len(store._granted) == 1


@pytest.mark.parametrize("fair", [False, True])
def test_only_who_respects_the_queue_reads_it(statements, fair):
    with statements() as sent, fenced_lock("a", ttl=60, fair=fair):
        pass
    assert ("fencedticket" in sent[0]["sql"]) == fair
