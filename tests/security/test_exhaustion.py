"""What a client, or a neighbour in the database, can use up; and what stops it."""

import psycopg
import pytest

from django_dblock import (
    IdempotencyKey,
    LockTimeout,
    advisory_lock,
    advisory_locks,
    fenced_lock,
    purge_idempotency_keys,
)
from django_dblock.keys import encode, key_id
from tests.app import idempotent_views as views
from tests.idempotency import calling

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss]

FLOOD = 300
"""Requests; it was run with 100,000, too."""


def test_too_long_key_is_refused_before_sql(statements):
    with statements() as sent:
        for key in ("x" * 256, "x" * 1_000_000, f'"{"x" * 256}"'):
            assert calling.ask(views.default, key=key).status_code == 400
    assert len(sent) == 0


def test_too_large_response_is_refused_and_rolled_back(settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_BODY = 10
    assert calling.ask(views.default).status_code == 500
    assert (calling.effects(), calling.rows()) == (0, 0)


def test_flood_of_keys_fills_only_its_scope(settings):
    """Whoever floods gets 429, others are served, and a purge makes room again."""
    settings.DBLOCK_IDEMPOTENCY_MAX_KEYS = limit = max(20, FLOOD // 100)
    told = {201: 0, 429: 0}
    for number in range(FLOOD):
        told[calling.ask(views.default, key=f"flood-{number}").status_code] += 1
    assert told == {201: limit, 429: FLOOD - limit}
    assert calling.rows() == limit
    calling_other = calling.ask(views.default, key="flood-1", **{"X-Client": "another"})
    assert calling_other.status_code == 201
    again = calling.ask(views.default, key="flood-1")
    assert again.headers["Idempotent-Replayed"] == "true"  # what is there is still answered
    IdempotencyKey.objects.filter(scope="scope:client").update(expires_at="2020-01-01T00:00:00Z")
    assert purge_idempotency_keys() == limit
    assert calling.ask(views.default, key="after").status_code == 201


def test_negative_twin_without_a_limit_stores_all_keys():
    for number in range(30):
        assert calling.ask(views.default, key=f"flood-{number}").status_code == 201
    assert calling.rows() == 30


def test_million_keys_are_refused_before_sql(statements):
    asked = 0

    def keys():
        nonlocal asked
        for asked in range(1, 1_000_001):
            yield ("sku", asked)

    with statements() as sent, pytest.raises(ValueError, match="DBLOCK_MAX_KEYS"):
        with advisory_locks(keys()):
            pytest.fail("the block ran")
    assert len(sent) == 0
    assert asked == 1001  # the rest is not even looked at


class TestSquatting:
    """A role without any rights on our tables, in the same database."""

    @pytest.fixture
    def squatter(self, rival):
        rival.execute("CREATE ROLE dblock_squatter")
        rival.execute("SET ROLE dblock_squatter")
        yield rival
        rival.execute("RESET ROLE")
        rival.execute("SELECT pg_advisory_unlock_all()")
        rival.execute("DROP ROLE dblock_squatter")

    def test_foreign_advisory_lock_costs_only_the_timeout(self, squatter, settings):
        settings.DBLOCK_ADVISORY_TIMEOUT = 0.05
        number = key_id(encode(("inventory", 1)), "")
        squatter.execute("SELECT pg_advisory_lock(%s)", [number])
        with pytest.raises(LockTimeout):
            with advisory_lock("inventory", 1):
                pytest.fail("the block ran")

    def test_unknown_namespace_changes_the_lock_number(self, squatter, settings):
        number = key_id(encode(("inventory", 1)), "")
        squatter.execute("SELECT pg_advisory_lock(%s)", [number])
        settings.DBLOCK_NAMESPACE = "a secret of the shop"
        with advisory_lock("inventory", 1, timeout=0):
            pass

    def test_foreign_role_cannot_touch_leases(self, squatter):
        statements = (
            "UPDATE django_dblock_fencedlock SET token = token + 1",
            "DELETE FROM django_dblock_fencedlock",
            "SELECT FROM django_dblock_fencedlock FOR KEY SHARE",
            "DO $$ BEGIN LOCK TABLE django_dblock_fencedlock; END $$",
            "TRUNCATE django_dblock_fencedlock",
            "INSERT INTO django_dblock_fencedticket VALUES (1)",
        )
        with fenced_lock("nightly", ttl=30) as lock:
            for statement in statements:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    squatter.execute(statement)
            with lock.guard():
                pass
        with fenced_lock("nightly", ttl=30):
            pass

    def test_foreign_role_cannot_touch_responses(self, squatter):
        calling.ask(views.default)
        for statement in (
            "SELECT body FROM django_dblock_idempotencykey",
            "UPDATE django_dblock_idempotencykey SET headers = '{}'",
            "DELETE FROM django_dblock_idempotencykey",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                squatter.execute(statement)
