"""A crash of the server loses no response, claim or step that was acknowledged."""

from contextlib import nullcontext
from datetime import UTC, datetime

import psycopg
import pytest
from django.db import connection, transaction

from django_dblock import resolve_idempotency_key, run_once
from django_dblock.models import IdempotencyKey
from tests.helpers import servers
from tests.helpers.servers import crash, keep_wal_in_memory, switched_to
from tests.idempotency.rows import abandoned

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss]


@pytest.fixture(scope="module")
def cluster(django_db_setup, django_db_blocker):
    server = servers.forgetful()
    with django_db_blocker.unblock():
        servers.migrate(server)
    yield server
    server.remove()


@pytest.fixture
def own(transactional_db, cluster):
    with switched_to(cluster):
        yield cluster


@pytest.mark.parametrize("mode", ["atomic", "lease"])
def test_sent_response_survives_a_crash(own, mode):
    runs = []

    def work(*_):
        runs.append(1)
        return len(runs)

    for number in range(3):
        assert run_once("crash", mode, number, work=work, mode=mode) == number + 1
        crash(own)
        assert run_once("crash", mode, number, work=work, mode=mode) == number + 1
    assert len(runs) == 3


def test_response_replacing_an_expired_one_survives_a_crash(own):
    run_once("again", work=lambda: "first")
    IdempotencyKey.objects.update(expires_at=LONG_AGO)
    assert run_once("again", work=lambda: "second") == "second"
    crash(own)
    assert run_once("again", work=lambda: "third") == "second"


@pytest.mark.parametrize("expired", [False, True], ids=["new", "expired"])
def test_claim_survives_a_server_crash(own, expired):
    """Else a run that has called the outside world would be unknown."""
    name = f"claim {expired}"
    if expired:
        run_once(name, work=lambda: "first")
        IdempotencyKey.objects.update(expires_at=LONG_AGO)
    seen = []

    def work(handle):
        crash(own)
        [row] = IdempotencyKey.objects.filter(completed_at=None)
        seen.append(row.token)
        return "done"

    assert run_once(name, work=work, mode="lease") == "done"
    assert seen == [IdempotencyKey.objects.latest("created_at").token]


def test_step_survives_a_server_crash(own):
    def work(handle):
        handle.run_step("charge", lambda: "charged")
        crash(own)
        [row] = IdempotencyKey.objects.filter(completed_at=None)
        return row.steps

    assert run_once("step", work=work, mode="lease") == {"charge": {"result": "charged"}}


@pytest.mark.parametrize("in_transaction", [False, True], ids=["", "in a transaction"])
@pytest.mark.parametrize("outcome", ["retry", "done"])
def test_decision_of_an_operator_survives_a_crash(own, outcome, in_transaction):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = on")
        row = abandoned(f"{outcome} {in_transaction}")
    keep_wal_in_memory(own)
    answer = {"status_code": 201, "body": b"{}"} if outcome == "done" else {}
    with transaction.atomic() if in_transaction else nullcontext():
        resolve_idempotency_key(row.pk, outcome=outcome, **answer)
    crash(own)
    after = IdempotencyKey.objects.get(pk=row.pk)
    assert (after.token > row.token, after.locked_until) == (True, None)
    assert after.status_code == answer.get("status_code")


def test_negative_twin_asynchronous_response_is_lost(own):
    """So the request would be run again."""
    with psycopg.connect(own.url, autocommit=True) as one:
        one.execute("CREATE TABLE answers (key text PRIMARY KEY)")
        one.execute("CHECKPOINT")
        keep_wal_in_memory(own)
        one.execute("INSERT INTO answers VALUES ('pay')")
    crash(own)
    with psycopg.connect(own.url, autocommit=True) as again:
        assert again.execute("SELECT * FROM answers").fetchall() == []
        again.execute("DROP TABLE answers")


def test_synchronous_commit_of_the_session_is_restored(own):
    run_once("session", work=lambda: "done")
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("off",)
