"""Statements in one message where that is possible, one by one otherwise.

What is on the wire is read from libpq's own trace, not from what Django believes it sent.
"""

import functools
import os
import tempfile
import threading
from contextlib import nullcontext

import psycopg
import pytest
from django.db import DatabaseError, ProgrammingError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from psycopg import IsolationLevel
from psycopg.pq import Trace

from django_dblock import (
    LockTimeout,
    UnsafeIsolation,
    advisory_lock,
    advisory_locks,
    fenced_lock,
)
from django_dblock.core import simple_query
from django_dblock.core.simple_query import send
from tests.app.models import Counter
from tests.helpers.locks import held, hold

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

KEY = ("inventory", "sku-1")


@pytest.fixture
def messages():
    """Count the messages that go to the server, by their kind."""
    connection.ensure_connection()
    pgconn = connection.connection.pgconn
    with tempfile.TemporaryFile() as trace:
        pgconn.trace(trace.fileno())
        pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)

        def sent():
            os.lseek(trace.fileno(), 0, os.SEEK_SET)
            lines = trace.read().decode().splitlines()
            trace.truncate(0)
            return [line.split("\t")[2] for line in lines if line.startswith("F\t")]

        yield sent
        pgconn.untrace()


class TestOneMessage:
    def test_begin_and_lock_are_one_message(self, messages):
        """A lock in a transaction of its own costs no round trip more than transaction.atomic()."""
        with transaction.atomic():
            Counter.objects.count()
        assert messages() == ["Query"] * 3, "BEGIN, the query, COMMIT"
        with advisory_lock(*KEY):
            Counter.objects.count()
        assert messages() == ["Query"] * 3, "BEGIN and the lock, the query, COMMIT"
        with advisory_locks([("account", n) for n in range(20)]):
            Counter.objects.count()
        assert messages() == ["Query"] * 3

    def test_begin_travels_with_the_first_lock_of_a_transaction(self, messages):
        with transaction.atomic(), advisory_lock(*KEY):
            pass
        assert messages() == ["Query"] * 2

    def test_lock_in_a_transaction_is_one_message(self, messages):
        with transaction.atomic():
            Counter.objects.count()
            messages()
            with advisory_lock(*KEY):
                pass
            assert messages() == ["Query"]

    def test_failed_wait_in_a_transaction_is_three_messages(self, messages, rival):
        hold(rival, *KEY)
        with transaction.atomic():
            Counter.objects.count()
            messages()
            with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0.01):
                pass
            assert messages() == ["Query"] * 3, (
                "try; savepoint, wait, release; roll back, ask who, release"
            )

    def test_driver_knows_that_a_transaction_is_open(self):
        with advisory_lock(*KEY):
            status = connection.connection.info.transaction_status
            assert status == psycopg.pq.TransactionStatus.INTRANS
        assert not connection.in_atomic_block


class TestAsAnyOtherQuery:
    def test_execute_wrappers_see_positional_parameters(self):
        seen = []

        def wrapper(execute, query, params, many, context):
            seen.append((query, params, many, context["connection"]))
            return execute(query, params, many, context)

        with connection.execute_wrapper(wrapper), advisory_lock("100%", "it's", "\\"):
            pass
        [(query, params, many, where)] = seen
        assert query.count("%s") == len(params) > 0
        assert "100%:it's" not in query
        assert any("it's" in str(value) for value in params)
        assert (many, where) == (False, connection)

    def test_query_log_shows_one_statement_without_values(self, caplog):
        with (
            caplog.at_level("DEBUG", "django.db.backends"),
            CaptureQueriesContext(connection) as logged,
        ):
            with advisory_lock("100%", "it's", "\\"):
                pass
        [entry] = [entry for entry in logged if "pg_try_advisory" in entry["sql"]]
        assert entry["sql"].startswith("BEGIN;")
        assert "it's" not in entry["sql"]
        [record] = [record for record in caplog.records if "pg_try_advisory" in record.sql]
        assert "it's" not in record.sql
        assert any("it's" in str(value) for value in record.params)

    def test_forbidding_wrapper_is_obeyed(self, observer):
        def forbid(*_):
            raise ZeroDivisionError

        with connection.execute_wrapper(forbid), pytest.raises(ZeroDivisionError):
            with advisory_lock(*KEY):
                pass
        assert held(observer) == {}
        assert not connection.in_atomic_block

    def test_another_threads_connection_is_refused(self):
        errors = []
        mine = connections["default"]

        def use():
            connections["default"] = mine
            try:
                with advisory_lock(*KEY):
                    pass
            except DatabaseError as error:
                errors.append(error)

        with transaction.atomic():
            other = threading.Thread(target=use)
            other.start()
            other.join()
        assert "created in a thread" in str(errors[0])

    def test_errors_are_django_errors(self):
        with pytest.raises(ProgrammingError, match="does not exist") as caught:
            with transaction.atomic():
                send(connections["default"], "SELECT nothing", parameters={})
        assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedColumn)

    @pytest.mark.parametrize("name", ["it's", "back\\slash", "100%", "ünï", 'dou"ble', "%(id)s"])
    def test_projects_own_application_name_is_quoted(self, name, observer):
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", [name])
            cursor.execute("SHOW application_name")
            [before] = cursor.fetchone()
        try:
            with advisory_lock("a"), connection.cursor() as cursor:
                cursor.execute("SHOW application_name")
                assert cursor.fetchone() == (f"{before} lock[a]",)
        finally:
            connection.close()

    @pytest.mark.parametrize("together", [True, False], ids=["one message", "one by one"])
    @pytest.mark.parametrize("conforming", ["on", "off"])
    def test_values_reach_the_server_unchanged(self, conforming, together):
        text, data = "it's 100 %s \\ ü", bytes(range(256))
        statement = (
            "SELECT convert_to(%(text)s, 'UTF8') = decode(%(hex_of_text)s, 'hex'),"
            " %(data)s = decode(%(hex_of_data)s, 'hex')"
        )
        values = {
            "text": text,
            "hex_of_text": text.encode().hex(),
            "data": data,
            "hex_of_data": data.hex(),
        }
        wrapper = nullcontext() if together else connection.execute_wrapper(pass_on)
        with transaction.atomic(), connection.cursor() as cursor, wrapper:
            cursor.execute(f"SET LOCAL standard_conforming_strings = {conforming}")
            rows = send(connections["default"], statement, parameters=values)
        assert rows == ([("t", "t")] if together else [(True, True)])


def pass_on(execute, *arguments):
    return execute(*arguments)


class TestOneByOne:
    """Where anything is unusual, the ordinary way."""

    @pytest.fixture(
        params=["subclass of the connection", "cursor class", "patched cursor()", "server binding"]
    )
    def unusual(self, request, monkeypatch):
        connection.close()
        options = connection.settings_dict["OPTIONS"]
        if request.param == "server binding":
            monkeypatch.setitem(options, "server_side_binding", True)
            monkeypatch.setitem(options, "prepare_threshold", 1)
        if request.param in ("cursor class", "server binding"):
            base = psycopg.Cursor if request.param == "server binding" else psycopg.ClientCursor

            class Traced(base):
                def execute(self, *args, **kwargs):
                    return super().execute(*args, **kwargs)

            monkeypatch.setitem(options, "cursor_factory", Traced)
        connection.ensure_connection()
        if request.param == "patched cursor()":
            real = connection.cursor
            monkeypatch.setattr(connection, "cursor", functools.partial(real), raising=False)
        if request.param == "subclass of the connection":
            connection.connection.__class__ = type("Traced", (psycopg.Connection,), {})
        yield
        monkeypatch.undo()
        connection.close()

    def test_locks_are_the_same(self, unusual, observer):
        for _ in range(3):
            with advisory_lock(*KEY), advisory_locks(["a", "b"]), advisory_lock("c", shared=True):
                assert len(held(observer)) == 4
        assert held(observer) == {}

    def test_failures_are_the_same(self, unusual, rival, statements):
        hold(rival, *KEY)
        with transaction.atomic():
            Counter.objects.create(name="before")
            for _ in range(3):
                with statements() as sent, pytest.raises(LockTimeout):
                    with advisory_lock(*KEY, timeout=0.01):
                        pass
                assert len(sent) == 6, "try; savepoint, wait; back, who?, release"
            Counter.objects.create(name="after")
        assert Counter.objects.count() == 2

    def test_driver_begins_with_the_aliass_isolation(self, monkeypatch, settings):
        connection.close()
        level = IsolationLevel.SERIALIZABLE
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", level)
        try:
            with pytest.raises(UnsafeIsolation, match="SERIALIZABLE"), advisory_lock(*KEY):
                pass
            settings.DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True
            with advisory_lock(*KEY), connection.cursor() as cursor:
                cursor.execute("SHOW transaction_isolation")
                assert cursor.fetchone() == ("serializable",)
        finally:
            connection.close()

    def test_servers_default_isolation_is_noticed(self):
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_isolation = 'serializable'")
        try:
            with pytest.raises(UnsafeIsolation), advisory_lock(*KEY):
                pass
        finally:
            connection.close()


class TestPrepared:
    @pytest.mark.usefixtures("long_period")
    def test_lease_whose_statements_are_prepared_is_two_round_trips(self, messages):
        """Sync ends each: the server answers once."""
        for _ in range(simple_query._PREPARE_AFTER + 2):
            with fenced_lock(*KEY, ttl=30):
                pass
        messages()
        with fenced_lock(*KEY, ttl=30):
            pass
        assert messages() == ["Bind", "Describe", "Execute", "Sync"] * 2
