"""Statements of leases that a session has prepared: the same results with less planning."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from django.db import (
    DataError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connections,
)

from django_dblock import LockLost, LockTimeout, fenced_lock
from django_dblock.core import simple_query
from django_dblock.core.connection import fetch

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.server,
    pytest.mark.usefixtures("long_period"),
]

OFTEN = simple_query._PREPARE_AFTER
PREPARED = "SELECT statement FROM pg_prepared_statements WHERE name LIKE 'dblock_%'"
NAMES = "SELECT name FROM pg_prepared_statements WHERE name LIKE 'dblock_%'"


@pytest.fixture
def wrapper():
    """A new connection, on which nothing is prepared."""
    wrapper = connections["default"]
    wrapper.close()
    wrapper.connect()
    yield wrapper
    wrapper.close()


def run(wrapper, statement, parameters):
    rows = []
    simple_query.fetch_directly(wrapper, statement, parameters, rows)
    return rows


def prepare(wrapper, statement, parameters):
    """Run the statement so often that it is prepared the next time; return the session."""
    for _ in range(OFTEN):
        run(wrapper, statement, parameters)
    return simple_query._sessions[wrapper.connection]


def prepared(wrapper):
    return [statement for [statement] in fetch(wrapper, PREPARED, {})]


VALUES = {
    "number": 7,
    "large": 2**60,
    "share": 0.5,
    "none": None,
    "flag": True,
    "text": "it's 100 %s \\ ü",
    "data": b"\x00\xff",
    "names": ["a'b", "c"],
    "moment": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    "uuid": UUID(int=1),
}
STATEMENT = "SELECT '100 %%', {}".format(", ".join(f"%({name})s" for name in VALUES))


@pytest.fixture
def table(rival):
    rival.execute("CREATE TABLE noted (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    yield
    rival.execute("DROP TABLE noted")


class TestResults:
    def test_rows_are_those_of_the_ordinary_cursor(self, wrapper):
        expected = fetch(wrapper, STATEMENT, VALUES)
        found = [run(wrapper, STATEMENT, VALUES) for _ in range(OFTEN + 3)]
        assert found == [expected] * (OFTEN + 3)
        [text] = prepared(wrapper)
        assert text.startswith("SELECT '100 %', $1, $2, ")
        # in a text, 0.5 is a numeric
        assert [*map(type, expected[0])] == [
            Decimal if type(value) is float else type(value) for value in found[-1][0]
        ]

    def test_commit_that_fails_returns_no_rows(self, wrapper, table):
        """The rows come before the error: the commit is that of the statement."""
        statement = "INSERT INTO noted VALUES (%(n)s) RETURNING number"
        session = simple_query._sessions.setdefault(wrapper.connection, simple_query._Session())
        for n in range(OFTEN + 1):
            run(wrapper, statement, {"n": n})
        rows = []
        with pytest.raises(IntegrityError):
            simple_query.fetch_directly(wrapper, statement, {"n": 1}, rows)
        assert rows == []
        assert len(session.names) == 1

    def test_types_that_differ_are_prepared_separately(self, wrapper):
        statement = "SELECT pg_typeof(%(a)s)::text"
        prepare(wrapper, statement, {"a": 1})
        assert run(wrapper, statement, {"a": 1}) == [("smallint",)]
        assert run(wrapper, statement, {"a": 2**40}) == [("bigint",)]
        assert run(wrapper, statement, {"a": 1.5}) == [("double precision",)]
        assert len(prepared(wrapper)) == 3

    @pytest.mark.parametrize(
        ("statement", "good", "bad", "error"),
        [
            ("SELECT 1 / %(a)s", 1, 0, DataError),
            ("SELECT %(a)s::int", "1", "one", DataError),
            ("SELECT %(a)s::text", "1", "\0", DataError),
            ("SELECT %(a)s::text", "1", object(), ProgrammingError),
        ],
    )
    def test_errors_are_those_of_the_ordinary_cursor(self, wrapper, statement, good, bad, error):
        prepare(wrapper, statement, {"a": good})
        run(wrapper, statement, {"a": good})
        with pytest.raises(error) as expected:
            fetch(wrapper, statement, {"a": bad})
        with pytest.raises(error) as found:
            run(wrapper, statement, {"a": bad})
        assert type(found.value.__cause__) is type(expected.value.__cause__)
        assert str(found.value).partition("\n")[0] == str(expected.value).partition("\n")[0]
        assert run(wrapper, statement, {"a": good}) == fetch(wrapper, statement, {"a": good})

    def test_each_statement_of_a_lease_is_prepared_once(self, wrapper):
        for _ in range(OFTEN + 2):  # the first may send TAKE_OR_INSERT
            with fenced_lock("a", ttl=30) as lease:
                lease.renew()
        texts = prepared(wrapper)
        assert sorted(text.split()[0] for text in texts) == ["UPDATE", "UPDATE", "WITH"]

    def test_refusals_and_losses_are_seen(self, wrapper, rival):
        """Each outcome comes from a statement that was prepared."""
        with fenced_lock("other", ttl=30):
            for _ in range(OFTEN + 2):
                with pytest.raises(LockTimeout), fenced_lock("other", ttl=30, timeout=0):
                    pass
        for _ in range(OFTEN + 1):
            with fenced_lock("a", ttl=30):
                pass
        with pytest.raises(LockLost), fenced_lock("a", ttl=30):
            rival.execute("UPDATE django_dblock_fencedlock SET token = token + 1")
        assert len(prepared(wrapper)) == 3


class TestWhen:
    def test_a_statement_is_prepared_after_it_was_sent_a_few_times(self, wrapper):
        prepare(wrapper, "SELECT %(a)s::int", {"a": 1})
        assert prepared(wrapper) == []
        run(wrapper, "SELECT %(a)s::int", {"a": 1})
        assert prepared(wrapper) == ["SELECT $1::int"]

    def test_setting_ends_it(self, wrapper, settings):
        prepare(wrapper, "SELECT %(a)s::int", {"a": 1})
        settings.DBLOCK_PREPARE = False
        assert run(wrapper, "SELECT %(a)s::int", {"a": 1}) == [(1,)]
        assert prepared(wrapper) == []

    def test_below_an_execute_wrapper_nothing_is_prepared(self, wrapper):
        """It sees every statement with its parameters."""
        seen = []

        def note(execute, statement, *more):
            seen.append(statement)
            return execute(statement, *more)

        with wrapper.execute_wrapper(note):
            for _ in range(OFTEN + 2):
                with fenced_lock("a", ttl=30):
                    pass
        assert len(seen) >= 2 * (OFTEN + 2)
        assert prepared(wrapper) == []

    def test_behind_a_pooler_nothing_is_prepared(self, pooled, observer):
        for _ in range(OFTEN + 2):
            with fenced_lock("a", ttl=30):
                pass
        assert prepared(connections["default"]) == []
        session = simple_query._sessions[connections["default"].connection]
        assert not session.keeps  # it was asked whether it is the server's own

    def test_number_of_statements_is_limited(self, wrapper, monkeypatch):
        monkeypatch.setattr(simple_query, "_MOST_PREPARED", 1)
        for statement in ("SELECT %(a)s::int", "SELECT %(a)s::bigint"):
            prepare(wrapper, statement, {"a": 1})
            assert run(wrapper, statement, {"a": 1}) == [(1,)]
        assert prepared(wrapper) == ["SELECT $1::int"]

    def test_statement_that_is_not_sent_often_is_not_prepared(self, wrapper):
        session = prepare(wrapper, "SELECT %(a)s::int", {"a": 1})
        session.until = 0  # the period is over
        run(wrapper, "SELECT %(a)s::int", {"a": 1})
        assert session.times == {"SELECT %s::int": 1}
        assert prepared(wrapper) == []

    def test_plan_is_of_the_present_period(self, wrapper, rival):
        """A plan of the time when the table was nearly empty would read all of it."""
        statement = "SELECT n FROM grown WHERE n = %(n)s"
        rival.execute(
            "CREATE TABLE grown (n int PRIMARY KEY) WITH (autovacuum_enabled = off);"
            "INSERT INTO grown VALUES (0)"
        )
        rival.execute("VACUUM ANALYZE grown")

        def plan():
            [[name]] = fetch(wrapper, NAMES, {})
            [[first], *_] = fetch(wrapper, f"EXPLAIN EXECUTE {name}(1)", {})
            return first.partition(" using")[0].partition(" on")[0]

        try:
            session = prepare(wrapper, statement, {"n": 1})
            for _ in range(6):  # the server decides for a plan that fits any parameter
                run(wrapper, statement, {"n": 1})
            assert plan() == "Seq Scan"
            rival.execute("INSERT INTO grown SELECT generate_series(1, 10000)")
            assert plan() == "Seq Scan"
            session.until = 0
            prepare(wrapper, statement, {"n": 1})
            assert run(wrapper, statement, {"n": 1}) == [(1,)]
            assert plan().startswith("Index")
            assert not session.outdated
        finally:
            rival.execute("DROP TABLE grown")

    def test_new_connection_begins_anew(self, wrapper):
        prepare(wrapper, "SELECT %(a)s::int", {"a": 1})
        run(wrapper, "SELECT %(a)s::int", {"a": 1})
        wrapper.close()
        assert run(wrapper, "SELECT %(a)s::int", {"a": 1}) == [(1,)]
        assert prepared(wrapper) == []


class TestRefused:
    def test_time_limit_of_the_preparation_is_one_of_the_statement(
        self, wrapper, table, rival, monkeypatch
    ):
        """Nobody waits twice, and what an operator cancels is not sent again."""
        statement = "SELECT * FROM noted WHERE number = %(a)s"
        session = prepare(wrapper, statement, {"a": 7})
        fetch(wrapper, "SET lock_timeout = '50ms'", {})
        sent = []
        real = simple_query._send_and_wait
        monkeypatch.setattr(
            simple_query,
            "_send_and_wait",
            lambda driver, message, *more: sent.append(message) or real(driver, message, *more),
        )
        with rival.transaction():
            rival.execute("LOCK TABLE noted")
            with pytest.raises(OperationalError) as error:
                run(wrapper, statement, {"a": 7})
        assert isinstance(error.value.__cause__, psycopg.errors.LockNotAvailable)
        assert sent == [b"SELECT pg_backend_pid()"]
        assert run(wrapper, statement, {"a": 7}) == []
        assert len(session.names) == 1


class TestForgotten:
    @pytest.mark.parametrize("forget", ["DISCARD ALL", "DEALLOCATE ALL"])
    def test_lease_goes_on(self, wrapper, forget):
        for _ in range(OFTEN + 2):
            with fenced_lock("a", ttl=30):
                pass
        with fenced_lock("a", ttl=30) as lease:
            fetch(wrapper, forget, {})
            assert lease.release()
        with fenced_lock("a", ttl=30):
            pass
        assert prepared(wrapper) == []
        assert not simple_query._sessions[wrapper.connection].keeps, "each would fail again"

    def test_columns_that_have_changed(self, wrapper, table, rival):
        rival.execute("INSERT INTO noted VALUES (7)")
        statement = "SELECT * FROM noted WHERE number = %(a)s"
        prepare(wrapper, statement, {"a": 7})
        assert run(wrapper, statement, {"a": 7}) == [(7,)]
        rival.execute("ALTER TABLE noted ADD other text")
        assert run(wrapper, statement, {"a": 7}) == [(7, None)]

    def test_statement_that_cant_be_prepared_is_sent_as_text(self, wrapper):
        """The type of its parameter is not known without the value."""
        statement = "SELECT %(a)s IS NULL"
        prepare(wrapper, statement, {"a": None})
        assert run(wrapper, statement, {"a": None}) == [(True,)]
        assert not simple_query._sessions[wrapper.connection].keeps

    def test_name_is_that_of_the_text(self, wrapper):
        """What another client has prepared under the name is the same statement."""
        prepare(wrapper, "SELECT %(a)s::int", {"a": 1})
        run(wrapper, "SELECT %(a)s::int", {"a": 1})
        simple_query._sessions.clear()
        prepare(wrapper, "SELECT %(a)s::bigint", {"a": 1})
        run(wrapper, "SELECT %(a)s::bigint", {"a": 1})
        assert len(set(fetch(wrapper, NAMES, {}))) == 2


class TestSearchPath:
    def test_statement_finds_the_table_of_the_present_path(self, wrapper, rival):
        """As an unprepared one does: tenants set the path on one connection."""
        rival.execute(
            "CREATE SCHEMA left_one CREATE TABLE placed (name text);"
            "CREATE SCHEMA right_one CREATE TABLE placed (name text);"
            "INSERT INTO left_one.placed VALUES ('left');"
            "INSERT INTO right_one.placed VALUES ('right')"
        )
        statement = "SELECT name FROM placed WHERE length(name) > %(a)s"
        try:
            fetch(wrapper, "SET search_path = left_one", {})
            prepare(wrapper, statement, {"a": 0})
            assert run(wrapper, statement, {"a": 0}) == [("left",)]
            fetch(wrapper, "SET search_path = right_one", {})
            assert run(wrapper, statement, {"a": 0}) == [("right",)]
            assert simple_query._sessions[wrapper.connection].keeps
        finally:
            rival.execute("DROP SCHEMA left_one CASCADE; DROP SCHEMA right_one CASCADE")
