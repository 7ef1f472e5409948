"""Purging: expired requests are removed in small commits, without waiting."""

import json
import re
import threading
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from django.utils import timezone

from django_dblock import IdempotencyKey, UnsupportedDatabase, purge_idempotency_keys
from django_dblock.idempotency.operations import (
    count_expired_idempotency_keys,
    purge_in_batches,
)
from django_dblock.sql import idempotency_operations as sql
from tests.helpers import observe
from tests.helpers.processes import process, race
from tests.idempotency.rows import HOUR, abandoned, make, over, unfinished, values

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def left():
    return sorted(IdempotencyKey.objects.values_list("key", flat=True))


def fill(count, prefix="k", **changes):
    """So many rows that expired a second apart, the last of them an hour ago."""
    latest = over()
    IdempotencyKey.objects.bulk_create(
        IdempotencyKey(
            **{
                **values(f"{prefix}{number:05}", expires_at=latest - timedelta(seconds=number)),
                **changes,
            }
        )
        for number in range(count)
    )


class TestWhatGoes:
    def test_only_expired_requests_are_purged(self):
        make("over", expires_at=over())
        make("kept")
        assert count_expired_idempotency_keys() == 1
        assert purge_idempotency_keys() == 1
        assert left() == ["kept"]

    def test_live_lease_stays(self):
        """Its retention is over, but somebody is at work on it."""
        unfinished("live", expires_at=over())
        assert count_expired_idempotency_keys() == 0
        assert purge_idempotency_keys() == 0
        assert left() == ["live"]

    def test_released_request_is_purged_after_retention(self):
        unfinished("free", locked_until=None, expires_at=over())
        unfinished("free-kept", locked_until=None)
        assert purge_idempotency_keys() == 1
        assert left() == ["free-kept"]

    def test_abandoned_request_is_purged_after_retention(self):
        abandoned("gone", expires_at=over())
        abandoned("kept")
        assert count_expired_idempotency_keys(abandoned=False) == 0
        assert purge_idempotency_keys(abandoned=False) == 0
        assert count_expired_idempotency_keys() == 1
        assert purge_idempotency_keys() == 1
        assert left() == ["kept"]

    def test_request_awaiting_an_operator_stays(self):
        abandoned("asks", expires_at=None, created_at=timezone.now() - 365 * 24 * HOUR)
        unfinished("free", locked_until=None, expires_at=None)
        assert purge_idempotency_keys() == 0
        assert left() == ["asks", "free"]

    def test_row_expiring_during_a_purge_stays(self):
        fill(2)
        batches = purge_in_batches(batch=1)
        next(batches)
        make("new", expires_at=over())  # before "now", but behind the beginning of the second batch
        make("later", expires_at=timezone.now())  # behind "now"
        assert sum(batches) == 2
        assert left() == ["later"]

    def test_using_purges_another_alias(self):
        row = values("over", expires_at=over())
        IdempotencyKey.objects.using("other").create(**row)
        assert purge_idempotency_keys() == 0
        assert purge_idempotency_keys(using="other") == 1

    def test_other_engine_is_refused(self):
        with pytest.raises(UnsupportedDatabase):
            purge_idempotency_keys(using="sqlite")


class TestBatches:
    def test_each_batch_is_a_commit(self, statements, rival):
        """The clock, then a statement for each batch; the last is not full."""
        fill(5)
        with statements() as sent:
            batches = purge_in_batches(batch=2)
            assert next(batches) == 2
            query = "SELECT count(*) FROM django_dblock_idempotencykey"
            assert rival.execute(query).fetchone() == (3,), "committed"
            assert list(batches) == [2, 1]
        assert len(sent) == 4

    def test_full_last_batch_is_followed_by_an_empty_one(self):
        fill(4)
        assert list(purge_in_batches(batch=2)) == [2, 2, 0]

    def test_longest_expired_go_first(self):
        fill(4)
        next(purge_in_batches(batch=3))
        assert left() == ["k00000"]

    def test_equal_expiry_times_are_purged(self):
        moment = over()
        IdempotencyKey.objects.bulk_create(
            IdempotencyKey(**values(f"k{number}", expires_at=moment)) for number in range(7)
        )
        assert list(purge_in_batches(batch=2)) == [2, 2, 2, 1]

    @pytest.mark.parametrize("batch", [0, -1])
    def test_batch_below_one_row_is_refused_before_sql(self, batch, statements):
        with statements() as sent, pytest.raises(ValueError, match="at least 1 row"):
            purge_idempotency_keys(batch=batch)
        assert len(sent) == 0

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_use_tz_does_not_matter(self, use_tz, settings):
        fill(3)
        settings.USE_TZ = use_tz
        settings.TIME_ZONE = "Pacific/Auckland"
        connection.close()
        assert purge_idempotency_keys(batch=1) == 3
        connection.close()


class TestOpenTransaction:
    def test_open_transaction_is_refused_before_sql(self, statements):
        with transaction.atomic(), statements() as sent:
            with pytest.raises(TransactionManagementError, match="ATOMIC_REQUESTS"):
                purge_idempotency_keys()
            assert len(sent) == 0

    def test_autocommit_off_is_refused(self):
        transaction.set_autocommit(False)
        try:
            with pytest.raises(TransactionManagementError):
                purge_idempotency_keys()
        finally:
            transaction.set_autocommit(True)

    def test_transaction_opened_between_batches_is_refused(self):
        fill(3)
        batches = purge_in_batches(batch=1)
        next(batches)
        with transaction.atomic(), pytest.raises(TransactionManagementError):
            next(batches)


class TestInATestCase(TestCase):
    """The transaction around a test does not count."""

    def test_purge_runs_in_a_testcase(self):
        make("over", expires_at=over())
        assert purge_idempotency_keys() == 1


class TestOthers:
    def test_locked_row_is_skipped(self, rival):
        """Nobody waits, neither the purge nor the other."""
        fill(3)
        with rival.transaction():
            rival.execute(
                "SELECT FROM django_dblock_idempotencykey WHERE key = 'k00001' FOR KEY SHARE"
            )
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = 1")
            assert purge_idempotency_keys() == 2
        connection.close()
        assert left() == ["k00001"]
        assert purge_idempotency_keys() == 1

    def test_negative_twin_without_skip_locked_waits(self, rival, monkeypatch):
        from django.db import OperationalError

        fill(3)
        monkeypatch.setattr(sql, "PURGE", sql.PURGE.replace("SKIP LOCKED", ""))
        with rival.transaction():
            rival.execute(
                "SELECT FROM django_dblock_idempotencykey WHERE key = 'k00001' FOR KEY SHARE"
            )
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = 1")
            with pytest.raises(OperationalError, match="lock timeout"):
                purge_idempotency_keys()
        connection.close()

    def test_row_reclaimed_after_the_search_stays(self, rival, observer):
        """The protocol's UPDATE commits between the look and the lock: the row is asked again."""
        abandoned("k", expires_at=over())
        # The purge is held between its snapshot and its lock, by a lock that it asks for there.
        statement = (
            sql.PURGE.replace("FOR UPDATE SKIP LOCKED", "")
            .replace(
                "SELECT id\n    FROM django_dblock_idempotencykey",
                "SELECT id\n    FROM (SELECT pg_advisory_xact_lock(7) OFFSET 0) AS held,"
                " django_dblock_idempotencykey AS looked",
            )
            .replace("LIMIT %(batch)s", "LIMIT %(batch)s\n    FOR UPDATE OF looked SKIP LOCKED")
        )
        assert statement.count("pg_advisory_xact_lock") == 1
        rival.execute("SELECT pg_advisory_lock(7)")
        with process(_purge_with, statement) as child:
            observe.until_blocked(observer)
            IdempotencyKey.objects.update(
                token=4, locked_until=timezone.now() + HOUR, expires_at=timezone.now() + HOUR
            )
            rival.execute("SELECT pg_advisory_unlock(7)")
            assert child.receive() == 0
        assert left() == ["k"]

    @pytest.mark.parametrize("level", ["repeatable read", "serializable"])
    def test_concurrent_purge_under_snapshot_isolation_succeeds(
        self, level, rival, observer, monkeypatch
    ):
        fill(3)
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(7)")
        held = sql.PURGE.replace(
            "SELECT id\n    FROM django_dblock_idempotencykey",
            "SELECT id\n    FROM (SELECT pg_advisory_xact_lock(7) OFFSET 0) AS held,"
            " django_dblock_idempotencykey AS looked",
        ).replace("FOR UPDATE SKIP LOCKED", "FOR UPDATE OF looked SKIP LOCKED")
        monkeypatch.setattr(sql, "PURGE", held)

        def other_purge():
            observe.until_blocked(observer)
            rival.execute("DELETE FROM django_dblock_idempotencykey WHERE key = 'k00001'; COMMIT")

        other = threading.Thread(target=other_purge)
        other.start()
        with connection.cursor() as cursor:
            cursor.execute(f"SET default_transaction_isolation = '{level}'")
        assert purge_idempotency_keys() == 2
        other.join()
        connection.close()
        assert left() == []


def _purge_with(channel, statement):
    sql.PURGE = statement
    return purge_idempotency_keys()


class TestManyAtOnce:
    """Real processes: purges beside each other, and beside traffic."""

    def test_concurrent_purges_count_each_row_once(self):
        fill(500)
        removed = race(4, _purge)
        assert sum(removed) == 500, removed
        assert left() == []

    def test_concurrent_requests_and_purges_do_not_interfere(self):
        """Two purges while others write and repeat keys: all new rows live, no old one does."""
        fill(1000)
        found = race(4, _purge_or_write)
        assert sum(found) == 1000 + 2 * 200
        assert IdempotencyKey.objects.filter(key__startswith="k").count() == 0
        assert IdempotencyKey.objects.filter(key__startswith="n").count() == 400


def _purge(number):
    return purge_idempotency_keys(batch=7)


def _purge_or_write(number):
    if number < 2:
        return purge_idempotency_keys(batch=7)
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '5s'")
    for each in range(200):
        with transaction.atomic():
            make(f"n{number}-{each}")
    return 200


class TestPlan:
    def plan(self, options, **parameters):
        with connection.cursor() as cursor:
            cursor.execute(
                f"EXPLAIN ({options}, FORMAT json) {sql.PURGE}",
                {
                    "now": str(timezone.now()), "after": "-infinity", "batch": 50,
                    "abandoned": True, **parameters,
                },
            )  # fmt: skip
            [(found,)] = cursor.fetchall()
        return found if isinstance(found, list) else json.loads(found)

    @pytest.fixture
    def table(self):
        """Twenty thousand live rows and some expired ones, known to the planner."""
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_dblock_idempotencykey (scope, key, fingerprint,"
                " fingerprint_version, method, path, headers, body_kind, token, owner, steps,"
                " created_at, completed_at, expires_at)"
                " SELECT 'user:7', n::text, '', 1, 'POST', '/', '{}', 'plain', 1, '', '{}', now(),"
                " now(), now() + (n - 1000) * interval '1 minute' FROM generate_series(1, 20000) n"
                " ORDER BY md5(n::text)"
            )
            cursor.execute("ANALYZE django_dblock_idempotencykey")

    def test_batch_uses_only_indexes(self, table):
        """No sequential scan, and no sort: the batch comes out of the index in its order."""
        nodes = list(walk(self.plan("COSTS off")[0]["Plan"]))
        kinds = [node["Node Type"] for node in nodes]
        assert "Seq Scan" not in kinds
        assert "Sort" not in kinds
        assert "django_dblock_idem_expires" in {node.get("Index Name") for node in nodes}

    def test_count_uses_only_indexes(self, table):
        with connection.cursor() as cursor:
            cursor.execute(
                f"EXPLAIN {sql.COUNT_EXPIRED}", {"now": str(timezone.now()), "abandoned": True}
            )
            assert "django_dblock_idem_expires" in str(cursor.fetchall())

    def test_batch_skips_rows_removed_before(self, table, rival, statements):
        """An old transaction keeps the dead rows; without a place to begin, each is visited."""
        rival.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        batches = purge_in_batches(batch=100)
        for _ in range(7):
            next(batches)
        with statements() as sent:
            next(batches)
        [query] = [query["sql"] for query in sent]
        [after] = re.findall(r"expires_at >= ('[^']+')", query)
        from_there = visited(query)
        from_the_beginning = visited(query.replace(after, "'-infinity'"))
        rival.execute("ROLLBACK")
        assert from_there < 300 < from_the_beginning, "pages, for 100 rows dead and 100 to come"


def visited(query):
    """How many pages the search for the batch touches, of the index and the table."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {query}")
            [(found,)] = cursor.fetchall()
        transaction.set_rollback(True)
    found = found if isinstance(found, list) else json.loads(found)
    [scan] = (
        node
        for node in walk(found[0]["Plan"])
        if node.get("Index Name") == "django_dblock_idem_expires"
    )
    return scan["Shared Hit Blocks"] + scan["Shared Read Blocks"]


def walk(node):
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)
