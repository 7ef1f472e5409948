"""What an operator does with a request whose worker is lost: free it, or give it a response."""

import logging
import threading
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from django_dblock import (
    IdempotencyAbandoned,
    IdempotencyError,
    IdempotencyInProgress,
    IdempotencyKey,
    IdempotencyLeaseLost,
    UnstorableResponse,
    UnsupportedDatabase,
    resolve_idempotency_key,
    run_once,
)
from django_dblock.sql import idempotency_operations as sql
from tests.app.models import Counter
from tests.helpers import observe
from tests.idempotency.rows import HOUR, abandoned, make, unfinished, values

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class Died(Exception):
    """The worker did, in the middle of a step."""


def bill(work, **more):
    return run_once("bill", 7, work=work, mode="lease", on_abandoned="refuse", **more)


def dies(handle):
    handle.run_step("charge", lambda: "charge-1")
    with handle.step("mail"):
        raise Died


@pytest.fixture
def waits_for_a_person():
    with pytest.raises(Died):
        bill(dies)
    with pytest.raises(IdempotencyAbandoned, match="An operator has to look"):
        bill(dies)
    return IdempotencyKey.objects.get()


class TestRetry:
    def test_next_retry_resumes_after_the_last_step(self, waits_for_a_person):
        row = waits_for_a_person
        resolve_idempotency_key(row.pk, outcome="retry")
        freed = IdempotencyKey.objects.get()
        assert (freed.token > row.token, freed.locked_until) == (True, None)

        def goes_on(handle):
            with handle.step("charge") as step:
                assert step.done
            return step.result

        assert bill(goes_on) == "charge-1"
        assert bill(dies) == "charge-1"

    def test_retention_counts_from_the_decision(self, waits_for_a_person, settings):
        settings.DBLOCK_IDEMPOTENCY_TTL = timedelta(days=3)
        assert waits_for_a_person.expires_at is None
        resolve_idempotency_key(waits_for_a_person.pk, outcome="retry")
        left = IdempotencyKey.objects.get().expires_at - timezone.now()
        assert timedelta(days=2.9) < left < timedelta(days=3.1)

    @pytest.mark.parametrize("ttl", [7200, timedelta(hours=2)])
    def test_ttl_sets_the_retention(self, ttl):
        row = abandoned(expires_at=None)
        resolve_idempotency_key(row.pk, outcome="retry", ttl=ttl)
        left = IdempotencyKey.objects.get().expires_at - timezone.now()
        assert 1.9 * HOUR < left < 2.1 * HOUR

    def test_released_request_can_be_freed(self):
        row = unfinished(locked_until=None)
        resolve_idempotency_key(row.pk, outcome="retry")
        assert IdempotencyKey.objects.get().token > row.token

    def test_decision_is_two_statements(self, statements):
        row = abandoned()
        with statements() as sent:
            resolve_idempotency_key(row.pk, outcome="retry")
        assert len(sent) == 2

    def test_old_worker_is_fenced_off(self):
        """It wakes up after its lease and a person's decision: its effects roll back."""

        def wakes_up_late(handle):
            IdempotencyKey.objects.update(locked_until=timezone.now() - HOUR)
            resolve_idempotency_key(IdempotencyKey.objects.get().pk, outcome="retry")
            with pytest.raises(IdempotencyLeaseLost), handle.guard():
                Counter.objects.create(name="effects")

        with pytest.raises(IdempotencyInProgress):
            bill(wakes_up_late)
        assert Counter.objects.count() == 0

    def test_negative_twin_same_token_lets_the_old_worker_write(self, monkeypatch):
        """Without the next token the old worker would not notice."""
        fenced = """token = GREATEST(\
token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    claim = NULL,
    """
        assert fenced in sql.RETRY
        monkeypatch.setattr(sql, "RETRY", sql.RETRY.replace(fenced, ""))

        def wakes_up_late(handle):
            IdempotencyKey.objects.update(locked_until=timezone.now() - HOUR)
            resolve_idempotency_key(IdempotencyKey.objects.get().pk, outcome="retry")
            with handle.guard():
                Counter.objects.create(name="effects")

        bill(wakes_up_late)
        assert Counter.objects.count() == 1


class TestDone:
    def test_every_retry_gets_the_response(self, waits_for_a_person):
        resolve_idempotency_key(
            waits_for_a_person.pk, outcome="done", status_code=200, body=b'"charge-1"'
        )
        assert bill(dies) == "charge-1"
        row = IdempotencyKey.objects.get()
        assert (row.token > waits_for_a_person.token, row.locked_until) == (True, None)
        assert row.completed_at <= timezone.now() < row.expires_at

    def test_fields_of_a_resolved_request(self):
        row = abandoned(expires_at=None)
        resolve_idempotency_key(
            row.pk, outcome="done", status_code=402, body=b"<p>no</p>", content_type="text/html"
        )
        row.refresh_from_db()
        assert row.status_code == 402
        assert row.headers == {"Content-Type": "text/html"}
        assert (bytes(row.body), row.body_kind) == (b"<p>no</p>", "plain")

    def test_default_content_type_is_json(self):
        row, empty = abandoned("a-key"), abandoned("b-key")
        resolve_idempotency_key(row.pk, outcome="done", status_code=201, body=b"{}")
        resolve_idempotency_key(empty.pk, outcome="done", status_code=204)
        row.refresh_from_db()
        empty.refresh_from_db()
        assert row.headers == {"Content-Type": "application/json"}
        assert (empty.headers, bytes(empty.body)) == ({}, b"")

    def test_response_is_encrypted_with_a_cipher(self, settings):
        class Cipher:
            def encrypt(self, data):
                return data[::-1]

            def decrypt(self, data):
                return data[::-1]

        settings.DBLOCK_IDEMPOTENCY_CIPHER = Cipher()
        row = abandoned()
        resolve_idempotency_key(row.pk, outcome="done", status_code=200, body=b"abc")
        row.refresh_from_db()
        assert (bytes(row.body), row.body_kind) == (b"cba", "encrypted")

    def test_result_of_run_once_is_json(self, waits_for_a_person):
        with pytest.raises(ValueError, match=r"its response is the result as JSON"):
            resolve_idempotency_key(
                waits_for_a_person.pk, outcome="done", status_code=200, body=b"paid"
            )
        with pytest.raises(IdempotencyAbandoned):
            bill(dies)

    def test_decision_commits_with_its_transaction(self):
        """A correction of the books, and the answer: both or none."""
        row = abandoned()
        with transaction.atomic():
            resolve_idempotency_key(row.pk, outcome="done", status_code=200)
            transaction.set_rollback(True)
        assert IdempotencyKey.objects.get().completed_at is None


class TestAudit:
    @pytest.fixture
    def audit(self, caplog):
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            yield lambda: [each for each in caplog.records if each.name == "django_dblock.audit"]

    @pytest.mark.parametrize(
        ("by", "who"), [({}, "database role postgres"), ({"by": "ann"}, "ann")], ids=["role", "by"]
    )
    def test_audit_names_operator_and_request(self, by, who, audit):
        row = abandoned()
        body = b'"secret"'
        resolve_idempotency_key(row.pk, outcome="done", status_code=200, body=body, **by)
        [record] = audit()
        assert (record.levelname, record.by, record.using) == ("WARNING", who, "default")
        assert (record.request_id, record.key, record.scope) == (row.pk, "3f1c0a…", "user:7")
        assert (record.token, record.owner) == (row.token, row.owner)
        assert (record.outcome, record.status_code) == ("done", 200)
        assert "responded to it with 200; token 3" in record.getMessage()
        assert row.key not in repr(vars(record))
        assert "secret" not in repr(vars(record))

    def test_audit_is_written_at_commit(self, audit):
        row = abandoned()
        with transaction.atomic():
            resolve_idempotency_key(row.pk, outcome="retry")
            assert audit() == []
        assert [record.outcome for record in audit()] == ["retry"]

    def test_rollback_or_refusal_is_not_audited(self, audit):
        row = abandoned()
        with transaction.atomic():
            resolve_idempotency_key(row.pk, outcome="retry")
            transaction.set_rollback(True)
        with pytest.raises(IdempotencyError):
            resolve_idempotency_key(row.pk, outcome="retry", token=99)
        assert audit() == []

    def test_autocommit_off_audits_at_once(self, audit):
        row = abandoned()
        transaction.set_autocommit(False)
        try:
            resolve_idempotency_key(row.pk, outcome="retry")
            assert len(audit()) == 1
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"outcome": "again"}, "not 'retry' or 'done'"),
            ({"outcome": "done"}, "status_code=None"),
            ({"outcome": "done", "status_code": 100}, "from 200 to 599"),
            ({"outcome": "done", "status_code": 600}, "from 200 to 599"),
            ({"outcome": "retry", "status_code": 200}, "takes no response"),
            ({"outcome": "retry", "body": b"x"}, "takes no response"),
            ({"outcome": "retry", "ttl": 0}, "ttl=0 is not"),
        ],
    )
    def test_wrong_arguments_are_refused_before_sql(self, arguments, message, statements):
        with statements() as sent, pytest.raises(ValueError, match=message):
            resolve_idempotency_key(1, **arguments)
        assert len(sent) == 0

    def test_unstorable_body_is_refused(self, settings, statements):
        settings.DBLOCK_IDEMPOTENCY_MAX_BODY = 3
        done = {"outcome": "done", "status_code": 200}
        with statements() as sent:
            with pytest.raises(UnstorableResponse, match="4 bytes"):
                resolve_idempotency_key(1, **done, body=b"long")
            with pytest.raises(UnstorableResponse, match="no header may have"):
                resolve_idempotency_key(1, **done, body=b"x", content_type="text/html\r\nX: y")
            with pytest.raises(TypeError):
                resolve_idempotency_key(1, **done, body="xyz")
        assert len(sent) == 0

    def test_unknown_request_is_not_found(self):
        with pytest.raises(IdempotencyKey.DoesNotExist, match="There is no request 17"):
            resolve_idempotency_key(17, outcome="retry")

    def test_request_on_another_alias_is_not_found(self):
        row = abandoned()
        with pytest.raises(IdempotencyKey.DoesNotExist, match="'other'"):
            resolve_idempotency_key(row.pk, outcome="retry", using="other")
        IdempotencyKey.objects.using("other").create(
            **values(completed_at=None, locked_until=None, token=3), pk=99
        )
        resolve_idempotency_key(99, outcome="retry", using="other")
        with pytest.raises(UnsupportedDatabase):
            resolve_idempotency_key(99, outcome="retry", using="sqlite")

    @pytest.mark.parametrize(
        "outcome", [{"outcome": "retry"}, {"outcome": "done", "status_code": 200}]
    )
    def test_live_lease_is_refused(self, outcome):
        row = unfinished()
        with pytest.raises(IdempotencyInProgress, match="its lease runs for another") as caught:
            resolve_idempotency_key(row.pk, **outcome)
        assert 3590 < caught.value.retry_after <= 3600
        assert (caught.value.scope, caught.value.key) == ("user:7", "3f1c0a…")
        assert "3f1c0a52-key" not in str(caught.value)
        assert IdempotencyKey.objects.get().token == 3

    def test_lease_of_a_century_is_refused(self):
        row = unfinished(locked_until=timezone.now() + timedelta(days=36500))
        with pytest.raises(IdempotencyInProgress) as caught:
            resolve_idempotency_key(row.pk, outcome="retry")
        assert caught.value.retry_after > 2**31

    def test_completed_request_is_refused(self):
        row = make()
        with pytest.raises(IdempotencyError, match="has its response, and every retry gets it"):
            resolve_idempotency_key(row.pk, outcome="done", status_code=500)
        assert IdempotencyKey.objects.get().status_code == 201

    def test_other_token_is_refused(self):
        row = abandoned(token=4)
        with pytest.raises(IdempotencyError, match="taken over meanwhile, and was not touched"):
            resolve_idempotency_key(row.pk, outcome="retry", token=3)
        resolve_idempotency_key(row.pk, outcome="retry", token=4)


@pytest.mark.parametrize("left", ["1 min", "-1 min"])
@pytest.mark.parametrize("outcome", [{"outcome": "retry"}, {"outcome": "done", "status_code": 500}])
def test_concurrent_takeover_wins(outcome, left, rival, observer):
    """The decision waits for the row, finds another token, and touches nothing.

    Also if that run is abandoned, too, by then: nobody has looked into what it did.
    """
    row = abandoned()
    rival.execute(
        "BEGIN; UPDATE django_dblock_idempotencykey"
        f" SET token = token + 1, locked_until = clock_timestamp() + interval '{left}'"
    )

    def take_over():
        waits = (
            "SELECT FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        observe.until(lambda: observer.execute(waits).fetchall(), "the operator waits for the row")
        rival.execute("COMMIT")

    other = threading.Thread(target=take_over)
    other.start()
    with pytest.raises(IdempotencyError, match="taken over meanwhile"):
        resolve_idempotency_key(row.pk, **outcome)
    other.join()
    row.refresh_from_db()
    assert (row.token, row.completed_at) == (4, None)
