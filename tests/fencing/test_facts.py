"""Facts about PostgreSQL that the lease protocol relies on: a changed server fails here first."""

import psycopg
import pytest

from tests.fencing.helpers import started
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


@pytest.fixture
def one(connect):
    found = connect()
    found.execute("CREATE TABLE fact (id int PRIMARY KEY, n int)")
    found.execute("INSERT INTO fact VALUES (1, 1)")
    yield found
    found.execute("ROLLBACK")
    found.execute("DROP TABLE fact")


def test_clock_timestamp_moves_within_a_statement_now_does_not(one):
    row = one.execute(
        "SELECT clock_timestamp(), now(), statement_timestamp(), pg_sleep(0.01),"
        " clock_timestamp(), now(), statement_timestamp()"
    ).fetchone()
    assert row[4] > row[0]
    assert row[1:3] == row[5:7]


def test_key_share_lets_an_update_through_and_not_for_update(one, rival):
    rival.execute("BEGIN; SELECT FROM fact FOR KEY SHARE")
    one.execute("UPDATE fact SET n = 2")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        one.execute("SELECT FROM fact FOR UPDATE NOWAIT")
    assert one.execute("SELECT FROM fact FOR UPDATE SKIP LOCKED").fetchall() == []
    rival.execute("ROLLBACK")


def test_share_blocks_an_update(one, rival):
    """So a guard FOR SHARE would hold up its own heartbeat."""
    rival.execute("BEGIN; SELECT FROM fact FOR SHARE")
    with pytest.raises(psycopg.errors.LockNotAvailable), one.transaction():
        one.execute("SET LOCAL lock_timeout = '20ms'")
        one.execute("UPDATE fact SET n = 2")
    rival.execute("ROLLBACK")


def test_key_share_lock_follows_the_rows_next_version(one, rival):
    """A heartbeat in the middle of a guard does not open the way for a thief."""
    rival.execute("BEGIN; SELECT FROM fact FOR KEY SHARE")
    one.execute("UPDATE fact SET n = 2")
    one.execute("UPDATE fact SET n = 3")
    assert one.execute("SELECT n FROM fact FOR UPDATE SKIP LOCKED").fetchall() == []
    rival.execute("COMMIT")
    assert one.execute("SELECT n FROM fact FOR UPDATE SKIP LOCKED").fetchall() == [(3,)]


def test_locking_select_rechecks_a_changed_row(one, rival, observer):
    """So a free lease that somebody else takes in between is not free any more."""
    rival.execute("BEGIN; UPDATE fact SET n = 2")
    found = []
    waiting = started(
        lambda: found.extend(one.execute("SELECT n FROM fact WHERE n = 1 FOR UPDATE").fetchall())
    )
    until_waiting(observer)
    rival.execute("COMMIT")
    waiting.join()
    assert found == []


def test_update_set_sees_the_locked_row_version(one, rival, observer):
    """The token in SET follows the latest one, whatever the statement's snapshot shows."""
    rival.execute("BEGIN; UPDATE fact SET n = 10")
    found = []
    statement = (
        "WITH free AS MATERIALIZED (SELECT id FROM fact FOR UPDATE)"
        " UPDATE fact SET n = fact.n + 1 FROM free WHERE fact.id = free.id RETURNING n"
    )
    waiting = started(lambda: found.extend(one.execute(statement).fetchall()))
    until_waiting(observer)
    rival.execute("COMMIT")
    waiting.join()
    assert found == [(11,)]


def until_waiting(observer):
    observe.until(
        lambda: observer.execute(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ).fetchall(),
        "it waits for the row",
    )


def test_read_only_transaction_refuses_each_of_the_statements(one):
    """So does a standby, where every transaction is."""
    for statement in ("UPDATE fact SET n = 1", "SELECT FROM fact FOR KEY SHARE"):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), one.transaction():
            one.execute("SET TRANSACTION READ ONLY")
            one.execute(statement)


def test_settings_units_parse_as_intervals(one):
    """GUARD compares the session's own limit with ours."""
    for text, seconds in [("0", 0), ("250ms", 0.25), ("90", 0.09), ("2min", 120), ("1h", 3600)]:
        one.execute(f"SET idle_in_transaction_session_timeout = '{text}'")
        row = one.execute(
            "SELECT extract(epoch FROM"
            " current_setting('idle_in_transaction_session_timeout')::interval)::float8"
        ).fetchone()
        assert row == (seconds,)


def test_idle_timeout_set_in_a_transaction_applies_to_it(connect):
    victim = connect()
    victim.execute("BEGIN")
    victim.execute("SELECT set_config('idle_in_transaction_session_timeout', '20ms', true)")
    observe.until(lambda: gone(victim), "the server ends it")


def gone(victim):
    try:
        victim.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False
