"""Facts about PostgreSQL that the design relies on: a changed server fails here first."""

import threading
import time

import psycopg
import pytest

from django_dblock.sql import advisory as sql
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


@pytest.fixture
def one(connect):
    return connect()


def objids(observer):
    return [
        row[0]
        for row in observer.execute(
            "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' ORDER BY 1"
        ).fetchall()
    ]


def test_select_list_is_evaluated_left_to_right(one):
    """WAIT sets lock_timeout, waits, and puts it back in one row."""
    row = one.execute(
        "SELECT current_setting('lock_timeout'), set_config('lock_timeout', '1s', true),"
        " current_setting('lock_timeout'), set_config('lock_timeout', '2s', true),"
        " current_setting('lock_timeout')"
    ).fetchone()
    assert row == ("0", "1s", "1s", "2s", "2s")


def test_lock_timeout_applies_to_later_columns(one, rival):
    rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    with one.transaction(), pytest.raises(psycopg.errors.LockNotAvailable):
        one.execute("SELECT set_config('lock_timeout', '20ms', true), pg_advisory_xact_lock(1)")


def test_lock_timeout_applies_to_each_lock_separately(one, connect, observer):
    """So WAIT_ALL computes the rest of its one deadline before each lock."""
    holder = connect()
    holder.execute("BEGIN; SELECT pg_advisory_xact_lock(2)")
    first = connect()
    first.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")

    def free():
        observe.until_blocked(observer)
        first.execute("SELECT pg_sleep(0.5)")
        first.execute("COMMIT")

    freeing = threading.Thread(target=free)
    freeing.start()
    with one.transaction(), pytest.raises(psycopg.errors.LockNotAvailable):
        one.execute("SET LOCAL lock_timeout = '2s'")
        started = time.monotonic()
        one.execute("SELECT pg_advisory_xact_lock(1), pg_advisory_xact_lock(2)")
    freeing.join()
    assert time.monotonic() - started > 2.25


def test_concat_arguments_are_evaluated_left_to_right(one):
    """WAIT keeps the caller's lock_timeout, sets its own, waits, and puts the caller's back."""
    one.execute("SET lock_timeout = '3s'")
    with one.transaction():
        row = one.execute(
            "SELECT set_config('lock_timeout', concat("
            "current_setting('lock_timeout'), left(set_config('lock_timeout', '7', true), 0),"
            "CASE current_setting('lock_timeout') WHEN '7ms' THEN '' ELSE '0' END,"
            "pg_advisory_xact_lock(1)), true)"
        ).fetchone()
        assert row == ("3s",)
        assert one.execute("SHOW lock_timeout").fetchone() == ("3s",)


def test_sorted_subselect_keeps_its_order(one):
    """WAIT_ALL locks in ascending order: two callers can't wait for each other."""
    numbers = [5, -3, 2**62, 0, -(2**62), 5]
    rows = one.execute(
        "SELECT wanted.id FROM"
        " (SELECT DISTINCT id FROM unnest(%s::bigint[]) AS id ORDER BY id OFFSET 0) AS wanted",
        [numbers],
    ).fetchall()
    assert [row[0] for row in rows] == sorted(set(numbers))
    assert "AS id ORDER BY id OFFSET 0) AS wanted" in sql.WAIT_ALL


def test_statement_timestamp_is_the_arrival_of_the_message(one):
    """WAIT_ALL counts its one deadline from there, also behind other statements of the message."""
    one.execute("BEGIN")
    cursor = one.execute("SELECT pg_sleep(0.1); SELECT clock_timestamp() - statement_timestamp()")
    cursor.nextset()
    assert cursor.fetchone()[0].total_seconds() >= 0.1
    one.execute("COMMIT")


def test_case_stops_at_the_first_match(one, observer):
    """On a standby and above READ COMMITTED nothing is locked."""
    one.execute("BEGIN")
    one.execute("SELECT CASE WHEN true THEN 'no' WHEN pg_try_advisory_xact_lock(1) THEN 'yes' END")
    assert objids(observer) == []


def test_try_lock_does_not_overtake_waiters(one, rival, connect, observer):
    """So trying first is fair: a shared holder, a waiting writer, and a reader who must queue."""
    one.execute("BEGIN; SELECT pg_advisory_xact_lock_shared(1)")
    writing = threading.Thread(target=lambda: rival.execute("SELECT pg_advisory_xact_lock(1)"))
    writing.start()
    observe.until_blocked(observer)
    late = connect()
    assert late.execute("SELECT pg_try_advisory_xact_lock_shared(1)").fetchone() == (False,)
    one.execute("COMMIT")
    writing.join()


def test_rolled_back_savepoint_frees_its_locks(one, observer):
    one.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    one.execute("SAVEPOINT a; SELECT pg_advisory_xact_lock(2); ROLLBACK TO a")
    assert objids(observer) == [1]
    one.execute("SAVEPOINT b; SELECT pg_advisory_xact_lock(3); RELEASE b")
    assert objids(observer) == [1, 3]


def test_pg_locks_shows_the_unsigned_halves(one, observer):
    one.execute("BEGIN; SELECT pg_advisory_xact_lock(-1)")
    row = observer.execute(
        "SELECT classid::bigint, objid::bigint, objsubid FROM pg_locks WHERE locktype = 'advisory'"
    ).fetchone()
    assert row == (2**32 - 1, 2**32 - 1, 1)


def test_local_application_name_ends_and_is_reported(one, observer):
    """Labels: set for the transaction, told to the client without asking, gone at its end."""

    def reported():
        return one.info.parameter_status("application_name")

    one.execute("SET application_name = 'shop'")
    one.execute("BEGIN; SELECT set_config('application_name', 'shop lock[a]', true)")
    assert reported() == "shop lock[a]"
    one.execute("SAVEPOINT s; SELECT set_config('application_name', 'shop lock[a b]', true)")
    assert reported() == "shop lock[a b]"
    shown = observer.execute(
        "SELECT application_name FROM pg_stat_activity WHERE pid = %s", [one.info.backend_pid]
    ).fetchone()
    assert shown == ("shop lock[a b]",)
    one.execute("ROLLBACK TO s")
    assert reported() == "shop lock[a]"
    one.execute("COMMIT")
    assert reported() == "shop"


def test_application_name_is_cut_at_63_bytes(one):
    one.add_notice_handler(lambda _: None)
    one.execute(f"SET application_name = '{'a' * 70}'")
    assert one.execute("SHOW application_name").fetchone() == ("a" * 63,)


def test_each_statement_of_a_message_has_its_snapshot(one, rival, observer):
    """SAVEPOINT, wait and RELEASE travel together; what is read next is newer than the lock."""
    rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    rival.execute("INSERT INTO app_counter (name, value) VALUES ('seen', 1)")
    freeing = threading.Thread(
        target=lambda: (observe.until_blocked(observer), rival.execute("COMMIT"))
    )
    freeing.start()
    one.execute("BEGIN")
    cursor = one.execute("SELECT pg_advisory_xact_lock(1); SELECT count(*) FROM app_counter")
    cursor.nextset()
    assert cursor.fetchone() == (1,)
    freeing.join()
    one.execute("COMMIT; DELETE FROM app_counter")


def test_locking_statement_reads_an_old_snapshot(one, rival, observer):
    """Why lock and read are two statements."""
    rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    rival.execute("INSERT INTO app_counter (name, value) VALUES ('unseen', 1)")
    freeing = threading.Thread(
        target=lambda: (observe.until_blocked(observer), rival.execute("COMMIT"))
    )
    freeing.start()
    one.execute("BEGIN")
    row = one.execute(
        "SELECT pg_advisory_xact_lock(1), (SELECT count(*) FROM app_counter)"
    ).fetchone()
    assert row is not None
    assert row[1] == 0
    freeing.join()
    one.execute("COMMIT; DELETE FROM app_counter")


def test_isolation_level_of_a_transaction_is_readable(one):
    for level in ("read committed", "read uncommitted", "repeatable read", "serializable"):
        one.execute(f"BEGIN ISOLATION LEVEL {level}")
        assert one.execute("SHOW transaction_isolation").fetchone() == (level,)
        one.execute("COMMIT")


def test_terminated_backend_frees_its_locks(one, rival, observer):
    one.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    observer.execute("SELECT pg_terminate_backend(%s, 5000)", [one.info.backend_pid])
    assert rival.execute("SELECT pg_try_advisory_xact_lock(1)").fetchone() == (True,)
