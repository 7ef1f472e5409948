"""``DBLOCK_IDEMPOTENCY_MAX_KEYS`` reads as many rows as it allows, however many have expired."""

import json

import pytest
from django.db import connection

from django_dblock import run_once
from django_dblock.exceptions import TooManyIdempotencyKeys
from django_dblock.sql import idempotency as sql

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

EXPIRED = 20_000
FILL = """
INSERT INTO django_dblock_idempotencykey (
    scope, key, fingerprint, fingerprint_version, method, path, headers, body_kind, token, owner,
    steps, created_at, completed_at, expires_at
)
SELECT 'once', 'key' || number, '\\x00', 1, '', '', '{}', 'plain', 1, '', '{}', now(), now(),
    now() + %s::interval
FROM generate_series(%s, %s) AS number
"""


@pytest.fixture
def many():
    """20,000 keys that have expired and that nobody has purged, and 10 that are live."""
    with connection.cursor() as cursor:
        cursor.execute(FILL, ["-1 hour", 1, EXPIRED])
        cursor.execute(FILL, ["1 hour", EXPIRED + 1, EXPIRED + 10])
        cursor.execute("ANALYZE django_dblock_idempotencykey")


def plan(statement, **parameters):
    """Run the statement, and return the nodes of its plan."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        [[plans]] = cursor.fetchall()
    whole = json.loads(plans) if isinstance(plans, str) else plans
    return list(nodes(whole[0]["Plan"]))


def nodes(node):
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def pages(found):
    return found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"]


def rows_read(found):
    """How many rows the scans have looked at, those that a filter removed among them."""
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in found
        if "Scan" in node["Node Type"] and "Relation Name" in node
    )


@pytest.mark.parametrize("statement", ["READ", "IS_FULL"])
def test_unanalysed_table_is_searched_by_key(statement):
    """The index of the live keys must not look as good to the planner."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE django_dblock_idempotencykey")
        cursor.execute(FILL, ["1 hour", 1, 5000])
    found = plan(getattr(sql, statement), namespace="", scope="once", key="key7", max_keys=1000)
    assert rows_read(found) == 1
    assert pages(found) < 10


def is_full(key, max_keys):
    return plan(sql.IS_FULL, namespace="", scope="once", key=key, max_keys=max_keys)


@pytest.mark.parametrize("max_keys", [5, 10, 1000])
@pytest.mark.usefixtures("many")
def test_new_key_reads_at_most_the_limit(max_keys):
    found = is_full("new", max_keys)
    assert rows_read(found) <= min(max_keys, 10) + 1
    assert pages(found) < 40


@pytest.mark.usefixtures("many")
def test_replay_counts_nothing():
    found = is_full(f"key{EXPIRED + 1}", 1000)
    assert rows_read(found) == 1


@pytest.mark.usefixtures("many")
def test_negative_twin_limit_after_filter_reads_expired_rows():
    """The statement of before."""
    old = """
    SELECT (count(*) >= %(max_keys)s)::text
    FROM (
        SELECT
        FROM django_dblock_idempotencykey
        WHERE scope = %(scope)s AND coalesce(expires_at > clock_timestamp(), true)
        LIMIT %(max_keys)s
    ) AS live
    """
    assert rows_read(plan(old, scope="once", max_keys=1000)) > EXPIRED


@pytest.mark.usefixtures("many")
def test_number_of_live_keys_is_still_exact(settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_KEYS = 11
    run_once("one more", work=lambda: 1)
    with pytest.raises(TooManyIdempotencyKeys):
        run_once("too many", work=lambda: 1)
    assert run_once("one more", work=lambda: 2) == 1


def test_key_without_an_end_counts(settings):
    """A request that waits for a person is live, however old."""
    settings.DBLOCK_IDEMPOTENCY_MAX_KEYS = 1

    def work(handle):
        with pytest.raises(TooManyIdempotencyKeys):
            run_once("b", work=lambda: 1)

    run_once("a", work=work, mode="lease", on_abandoned="refuse")
