"""``dblock doctor`` finds coordinated work that no process does."""

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection, transaction

from django_dblock import IdempotencyKey, latch, leadership, once_per, partitions
from django_dblock.sql import doctor as sql
from django_dblock.testing import database_time
from tests.doctor.helpers import found
from tests.helpers import queueing

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.server,
    pytest.mark.usefixtures("within_a_period"),
]

WORKERS, PARTS, TERMS = "outbox~worker", "outbox~partition", "sync~leader"


@pytest.fixture
def age(observer):
    """Let leases of a name have been granted, or have ended, longer ago."""

    def apply(name, seconds, *, ended=False, slot=None):
        observer.execute(
            "UPDATE django_dblock_fencedlock SET acquired_at = acquired_at - %(ago)s,"
            " expires_at = CASE WHEN %(ended)s THEN clock_timestamp() - %(ago)s ELSE expires_at END"
            " WHERE name = %(name)s AND grants > 0 AND (%(slot)s::int IS NULL OR slot = %(slot)s)",
            {"ago": timedelta(seconds=seconds), "name": name, "ended": ended, "slot": slot},
        )

    return apply


def worker():
    return partitions("outbox", count=4, ttl=30)


class TestPartitions:
    def test_unowned_partition_beside_live_workers_is_a_warning(self, age):
        with worker():
            age(WORKERS, 300)
            age(PARTS, 100, ended=True, slot=1)
            age(PARTS, 61, ended=True, slot=3)
            finding = found()["partitions"]
        assert finding.level == "warning"
        assert re.fullmatch(
            r"2 of 4 partitions of 'outbox' have had no owner for up to 10\d s, with 1 live "
            r"worker\(s\)\.",
            finding.found,
        )
        assert "hangs in a long use" in finding.follows

    def test_never_owned_partition_counts_from_oldest_worker(self, age, observer):
        with worker():
            observer.execute("DELETE FROM django_dblock_fencedlock WHERE name = %s", [PARTS])
            assert found()["partitions"].level == "ok", "the worker came a moment ago"
            age(WORKERS, 90)
            assert found()["partitions"].found.startswith("4 of 4 partitions of 'outbox'")

    def test_negative_twin_partitions_taken_in_time_are_fine(self, age):
        with worker():
            age(WORKERS, 300)
            age(PARTS, 45, ended=True, slot=1)
            assert found()["partitions"].level == "ok"

    def test_new_worker_gets_time_to_take_partitions(self, age):
        with worker():
            age(PARTS, 3000, ended=True)
            assert found()["partitions"].level == "ok"

    def test_wrong_count_is_ignored(self, age, observer):
        with worker():
            age(WORKERS, 300)
            age(PARTS, 100, ended=True)
            observer.execute(
                "UPDATE django_dblock_fencedlock SET metadata = %s WHERE name = %s",
                ['{"count": "many"}', WORKERS],
            )
            assert found()["partitions"].level == "ok"


class TestLatches:
    @pytest.fixture
    def imported(self):
        """A latch of two parts, one done, that this thread waits for."""
        imported = latch("import", 7, parties=2)
        imported.count_down("a")
        attempt = imported._attempt(60)
        queueing.until_queued(attempt)
        queueing.stay_queued()
        yield imported
        attempt.close()

    def test_latch_that_stands_still_while_awaited_is_a_warning(self, imported, observer):
        observer.execute(
            "UPDATE django_dblock_latchpart SET done_at = done_at - interval '2 hours'"
        )
        finding = found()["latches"]
        assert finding.level == "warning"
        assert finding.found.startswith(
            "1 wait(s) for the latch 'import:7', 1 part(s) of which are done, the latest 720"
        )

    def test_negative_twin_part_done_a_moment_ago_is_fine(self, imported):
        assert found()["latches"].level == "ok"

    def test_negative_twin_old_latch_nobody_waits_for_is_fine(self, observer):
        latch("import", 7, parties=2).count_down("a")
        observer.execute(
            "UPDATE django_dblock_latchpart SET done_at = done_at - interval '2 hours'"
        )
        assert found()["latches"].level == "ok"


class TestUnattended:
    def test_leadership_and_partitions_without_processes_are_info(self, age):
        for _ in leadership("sync", ttl=30):
            break
        with worker():
            pass
        assert found()["unattended"].level == "ok", "they may come back"
        age(TERMS, 400, ended=True)
        age(WORKERS, 7200, ended=True)
        finding = found()["unattended"]
        assert finding.level == "info"
        assert re.fullmatch(
            r"No worker of 'outbox' has been alive for 720\d s; Nobody has led 'sync' for 40\d s, "
            r"and nobody campaigns\.",
            finding.found,
        )

    def test_negative_twin_waiting_candidate_is_alive(self, age, observer):
        for _ in leadership("sync", ttl=30):
            break
        age(TERMS, 400, ended=True)
        observer.execute(
            "INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)"
            " VALUES (%s, 0, 'w', clock_timestamp() + interval '6 s')",
            [TERMS],
        )
        assert found()["unattended"].level == "ok"

    def test_five_are_named_and_the_rest_counted(self, age):
        for number in range(7):
            for _ in leadership("sync", number, ttl=30):
                break
            age(f"sync:{number}~leader", 400 + number, ended=True)
        finding = found()["unattended"]
        assert finding.found.count("Nobody has led") == 5
        assert "'sync:6'" in finding.found
        assert finding.found.endswith("; and 2 more.")


NOW = datetime.now(UTC)


def job(per="day", **options):
    @once_per(per, key=("reports", "nightly"), tz="UTC", **options)
    def report(period, *handle):
        pass

    return report


class TestJobs:
    def fail(self):
        @once_per("day", key="settlement", tz="UTC", mode="lease")
        def settle(period, handle):
            handle.run_step("read", lambda: None)  # what keeps the row of a run that fails
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            settle.run_for(date(2020, 2, 29))

    @pytest.mark.parametrize("died", [True, False], ids=["died", "failed"])
    def test_abandoned_run_is_found(self, died, observer):
        self.fail()
        assert found()["jobs"].level == "ok", "its next call may come"
        observer.execute(
            "UPDATE django_dblock_idempotencykey SET created_at = clock_timestamp() - %(ago)s,"
            " locked_until = CASE WHEN %(died)s THEN clock_timestamp() - %(ago)s END",
            {"ago": timedelta(hours=2), "died": died},
        )
        finding = found()["jobs"]
        assert finding.level == "warning"
        assert re.fullmatch(
            r"once_per:settlement:day:2020-02-29 has had no worker for 720\d s\.", finding.found
        )
        assert "run_for()" in finding.do

    @pytest.mark.parametrize(
        ("per", "late", "in_time"),
        [("day", 3.1, 2.9), ("15 min", 0.04, 0.03), ("6 hours", 0.8, 0.7), ("month", 94, 92)],
    )
    def test_overdue_job_is_found(self, per, late, in_time, observer):
        job(per, keep=365)()
        for days, level in ((in_time, "ok"), (late, "info")):
            observer.execute(
                "UPDATE django_dblock_idempotencykey SET completed_at = clock_timestamp() - %s",
                [timedelta(days=days)],
            )
            finding = found()["jobs"]
            assert finding.level == level
        assert f"once_per:reports:nightly:{per} last finished " in finding.found
        job(per)()  # the record of this period is there: it does not run again
        with database_time(NOW + timedelta(days=100)):
            job(per)()
        assert found()["jobs"].level == "ok", "its latest run is new"

    @pytest.mark.parametrize("label", ["2026", "the last week"])
    def test_jobs_with_own_calendar_are_skipped(self, label, observer):
        job(lambda now: label)()
        observer.execute(
            "UPDATE django_dblock_idempotencykey"
            " SET completed_at = clock_timestamp() - interval '90 days'"
        )
        assert IdempotencyKey.objects.get().key.startswith("once_per:reports:nightly:custom:")
        assert found()["jobs"].level == "ok"


def test_lost_connection_is_a_finding(monkeypatch):
    monkeypatch.setattr(sql, "UNATTENDED", "SELECT pg_terminate_backend(pg_backend_pid())")
    try:
        assert list(found()) == ["connection"]
    finally:
        connection.close()


def test_callers_timeouts_stay_unchanged():
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '7s'")
        found()
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("7s",)
