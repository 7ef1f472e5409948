"""Operators' pages and commands read a bounded number of rows, however large the tables are.

Asserted on the rows that the plans' scans have read and on the rows that come back; each with a
twin that shows that the number can be exceeded.
"""

import json
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client

from django_dblock.inspect import fenced_leases, read_requests, unfinished_requests
from tests.helpers.plans import rows_read, walk
from tests.monitor import scene

pytestmark = pytest.mark.django_db(transaction=True)

MANY = 20_000


def listed(*arguments):
    out = StringIO()
    call_command("dblock", "list", *arguments, stdout=out)
    return out.getvalue()


def plan(query):
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT json) {query}")
        [(found,)] = cursor.fetchall()
    return (found if isinstance(found, list) else json.loads(found))[0]["Plan"]


@pytest.fixture
def abandoned(observer):
    """Twenty thousand requests whose workers were lost, and as many finished ones."""
    observer.execute(
        "INSERT INTO django_dblock_idempotencykey (scope, key, fingerprint, fingerprint_version,"
        " method, path, headers, body_kind, token, owner, steps, created_at, completed_at,"
        " locked_until) SELECT 'user:7', n::text, '', 1, 'POST', '/pay/', '{}', 'plain', 1, '',"
        " '{}', now(), CASE WHEN n > %(many)s THEN now() END,"
        " CASE WHEN n <= %(many)s THEN now() - n * interval '1 minute' END"
        " FROM generate_series(1, 2 * %(many)s) n",
        {"many": MANY},
    )
    observer.execute("ANALYZE django_dblock_idempotencykey")


@pytest.fixture
def idle(observer):
    """Twenty thousand leases that ended long ago, and one that is held."""
    observer.execute(
        "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at, renewed_at,"
        " expires_at, lock_delay, grants, metadata) SELECT 'idle-' || n, 0, n, 'w', now(), now(),"
        " now() - interval '1 day', '0', 1, '{}' FROM generate_series(1, %s) n",
        [MANY],
    )
    scene.lease(observer, "nightly")
    observer.execute("ANALYZE django_dblock_fencedlock")


class TestRequests:
    def test_limited_read_stays_bounded(self, abandoned, statements):
        with statements() as sent:
            found = read_requests(limit=100)
        assert len(found.rows) == 100
        assert (found.idle, found.leased) == (10_000, 0), "counted up to a limit"
        [query] = sent
        assert rows_read(query["sql"]) <= 10_000 + 3 * 100 + 10

    def test_negative_twin_without_a_limit_reads_all(self, abandoned, statements):
        with statements() as sent:
            assert len(unfinished_requests()) == MANY
        [query] = sent
        assert rows_read(query["sql"]) > MANY

    def test_longest_abandoned_come_first(self, abandoned):
        longest = min(unfinished_requests(), key=lambda request: request.remaining)
        assert read_requests(limit=3).rows[0].id == longest.id

    def test_list_notes_left_out_requests(self, abandoned):
        shown = listed()
        assert len(shown.splitlines()) < 1_010
        assert "Note: Requests in one state: only 1,000 are shown." in shown
        found = json.loads(listed("--json", "--limit", "0"))
        assert len(found["idempotency"]) == MANY
        assert found["notes"] == []

    def test_monitors_read_stays_bounded(self, abandoned, statements):
        client = Client()
        client.force_login(User.objects.create_superuser("root"))
        with statements() as sent:
            page = client.get("/admin/django_dblock/lockmonitor/")
        assert "The first 100 of 10000+ are shown." in page.content.decode()
        [query] = [each["sql"] for each in sent if "idempotencykey" in each["sql"]]
        assert rows_read(query) <= 10_000 + 3 * 100 + 10


class TestLeases:
    def test_list_returns_all_held_and_some_ended_leases(self, idle):
        found = json.loads(listed("--json"))
        assert found["fenced"][0]["name"] == "nightly"
        assert len(found["fenced"]) == 1_001
        assert "Leases that have ended: only 1,000 are shown." in found["notes"][0]

    def test_list_notes_the_limit_also_of_a_pattern_with_a_set(self, idle):
        """The statement reads leases in their order, and the set is compared afterwards."""
        found = json.loads(listed("--json", "--name", "idle-[2]*", "--limit", "5"))
        assert found["fenced"] == []
        assert "Leases that have ended: only 5 are shown." in found["notes"][0]
        found = json.loads(listed("--json", "--name", "idle-123[45]", "--limit", "500"))
        assert [lease["name"] for lease in found["fenced"]] == ["idle-1234", "idle-1235"]
        assert found["notes"] == []

    def test_ended_leases_are_read_in_order_of_an_index(self, idle, statements):
        """No sort of a million rows; the held ones have no index, and are one pass of the table."""
        with statements() as sent:
            assert len(fenced_leases(expired=True, limit=100)) == 101
        [query] = sent
        nodes = list(walk(plan(query["sql"])))
        by_index = [node for node in nodes if node.get("Index Name", "").endswith("name_slot")]
        assert any(node["Actual Rows"] <= 101 for node in by_index)
        assert all(
            node["Actual Rows"] <= 101 for node in nodes if node["Node Type"].endswith("Sort")
        )

    def test_name_is_searched_among_all_leases(self, idle):
        found = json.loads(listed("--json", "--name", "idle-1999[89]"))["fenced"]
        assert [lease["name"] for lease in found] == ["idle-19998", "idle-19999"]
        found = json.loads(listed("--json", "--name", "idle_1*"))["fenced"]
        assert found == [], "an underscore is no wildcard"
