"""A commit that no synchronous standby confirmed is not reported as a success."""

import threading
import unittest
from contextlib import nullcontext, suppress

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import TestCase

from django_dblock import (
    IdempotencyKey,
    IdempotencyNotReplicated,
    idempotent,
    resolve_idempotency_key,
    run_once,
)
from django_dblock.core.replication import watch_commits
from tests.app.idempotent_views import add_one, client
from tests.helpers import observe, servers
from tests.helpers.servers import switched_to
from tests.idempotency import aleasing
from tests.idempotency import rows as made
from tests.idempotency.calling import ask, ask_joined, effects, problem, rows
from tests.idempotency.leasing import leased, post

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

WAITING = "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def cluster(django_db_setup, django_db_blocker):
    server = servers.throw_away()
    with django_db_blocker.unblock():
        servers.migrate(server)
    yield server
    server.remove()


@pytest.fixture
def missing_standby(transactional_db, cluster):
    """Commits wait for a standby that never comes; an operator cancels each wait at once."""
    with switched_to(cluster):
        with psycopg.connect(cluster.url, autocommit=True) as looking:
            looking.execute("SET synchronous_commit = local")
            looking.execute("TRUNCATE django_dblock_idempotencykey")
            operator = Operator(cluster.url)
            operator.start()
            names(looking, "ghost")
            until_commits_wait(cluster.url)
            yield operator
            operator.stop()
            names(looking, "")
        connection.close()


def names(looking, value):
    looking.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{value}'")
    looking.execute("SELECT pg_reload_conf()")
    observe.until(
        lambda: looking.execute("SHOW synchronous_standby_names").fetchone() == (value,),
        "the setting is read",
    )


def until_commits_wait(url):
    """Sessions read the setting by themselves, but the checkpointer tells commits to wait."""
    heard = []
    with psycopg.connect(url, autocommit=True) as probe:
        probe.add_notice_handler(heard.append)
        probe.execute("SET synchronous_commit = on")

        def cancelled():
            probe.execute("SELECT pg_logical_emit_message(true, 'probe', '')")
            return heard

        observe.until(cancelled, "a commit waits for the standby")


class Operator(threading.Thread):
    """Cancels each wait for the standby once, and counts them.

    A second cancel could come late, and hit the statement that marks the response as unconfirmed.
    """

    def __init__(self, url):
        super().__init__(daemon=True)
        self._url, self._over, self.cancelled = url, threading.Event(), 0

    def run(self):
        seen = set()
        with psycopg.connect(self._url, autocommit=True) as looking:
            while not self._over.wait(0.02):
                for wait in looking.execute(WAITING).fetchall():
                    if wait not in seen:
                        seen.add(wait)
                        looking.execute("SELECT pg_cancel_backend(%s)", wait[:1])
                        self.cancelled += 1

    def stop(self):
        self._over.set()
        self.join()


@idempotent(scope=client)
def paying(request, how):
    return HttpResponse("paid", status=201)


def test_unconfirmed_response_is_503_until_confirmed(missing_standby):
    """Nine payments that had been answered with 201 were gone after a promotion."""
    first = ask(paying)
    assert problem(first) == (503, "not_replicated")
    assert first.headers["Retry-After"] == "1"
    assert rows() == 1
    assert problem(ask(paying)) == (503, "not_replicated"), "still unconfirmed"
    missing_standby.stop()
    assert missing_standby.cancelled >= 2
    with psycopg.connect(missing_standby._url, autocommit=True) as looking:
        looking.execute("SET synchronous_commit = local")
        names(looking, "")  # as if the standby had come
        again = ask(paying)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert IdempotencyKey.objects.get().locked_until is None


@pytest.mark.usefixtures("missing_standby")
def test_unconfirmed_run_once_raises():
    with pytest.raises(IdempotencyNotReplicated, match="no synchronous standby confirmed"):
        run_once("settle", work=lambda: 1)
    assert rows() == 1


@pytest.mark.usefixtures("missing_standby")
@pytest.mark.parametrize("how", [ask, ask_joined])
def test_response_is_unconfirmed_also_if_a_hook_raises(how):
    @idempotent(scope=client)
    def view(request, how):
        transaction.on_commit(lambda: 1 / 0)
        return HttpResponse("paid", status=201)

    with pytest.raises(ZeroDivisionError):
        how(view)
    assert IdempotencyKey.objects.get().locked_until is not None
    assert problem(ask(view)) == (503, "not_replicated")


@pytest.mark.usefixtures("missing_standby")
def test_commit_of_the_callers_transaction_raises():
    """As ATOMIC_REQUESTS does it: the response is not sent."""
    with pytest.raises(IdempotencyNotReplicated):
        ask_joined(paying)
    with pytest.raises(IdempotencyNotReplicated):
        ask_joined(paying)


@pytest.mark.usefixtures("missing_standby")
def test_claim_that_was_not_replicated_runs_nothing():
    runs = []
    view = leased(lambda request: runs.append(1) or HttpResponse())
    assert problem(post(view)) == (503, "not_replicated")
    assert (runs, rows()) == ([], 0)


@pytest.mark.usefixtures("missing_standby")
def test_claim_that_was_not_replicated_leaves_the_key_bound():
    """It would have continued a run that may have given a derived key to another system."""
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = local")
        made.abandoned("key", "scope:client")
        cursor.execute("RESET synchronous_commit")
    assert problem(post(leased(lambda request: HttpResponse()))) == (503, "not_replicated")
    assert rows() == 1


@pytest.fixture
def abandoned_work(missing_standby):
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = local")
        row = made.abandoned()
        cursor.execute("RESET synchronous_commit")
    return row


@pytest.mark.parametrize("in_transaction", [False, True], ids=["", "in a transaction"])
@pytest.mark.parametrize("outcome", ["retry", "done"])
def test_unconfirmed_decision_of_an_operator_raises(
    abandoned_work, outcome, in_transaction, caplog
):
    answer = {"status_code": 201, "body": b"{}"} if outcome == "done" else {}
    with (
        pytest.raises(IdempotencyNotReplicated, match="'dblock list --kind idempotency'") as caught,
        transaction.atomic() if in_transaction else nullcontext(),
    ):
        resolve_idempotency_key(abandoned_work.pk, outcome=outcome, **answer)
    assert (caught.value.scope, caught.value.key) == ("user:7", "3f1c0a…")
    assert "resolved request" in caplog.text, "it holds on this server"
    row = IdempotencyKey.objects.get()
    assert row.token > abandoned_work.token
    # As the response of a run: not replayed until it is confirmed.
    assert row.locked_until == row.completed_at


def test_command_tells_an_unconfirmed_decision(abandoned_work):
    done = ["--answer", "201", "--yes"]
    with pytest.raises(CommandError, match="no synchronous standby confirmed"):
        call_command("dblock", "release", "--request", abandoned_work.pk, *done)


WRITES = ["step", "complete", "return"]


# Where a transaction begins on a dead connection, Django itself raises.
@pytest.mark.parametrize(
    ("what", "dead"),
    [
        *((what, False) for what in (*WRITES, "complete together", "hook raises")),
        *((what, True) for what in WRITES),
    ],
)
def test_unreplicated_step_and_response_raise(transactional_db, cluster, what, dead):
    with switched_to(cluster), psycopg.connect(cluster.url, autocommit=True) as looking:
        looking.execute("SET synchronous_commit = local")
        looking.execute("TRUNCATE django_dblock_idempotencykey")
        operator = Operator(cluster.url)

        def work(request):
            operator.start()
            names(looking, "ghost")
            until_commits_wait(cluster.url)
            handle = request.idempotency
            if dead:  # as after a statement of the view that failed
                connection.connection.close()
            if what == "step":
                handle.run_step("charge", lambda: 1)
            elif what == "complete":
                return handle.complete(HttpResponse("done"))
            elif what == "complete together":
                with transaction.atomic():
                    return handle.complete(HttpResponse("done"))
            elif what == "hook raises":
                with suppress(ZeroDivisionError), transaction.atomic():
                    transaction.on_commit(lambda: 1 / 0)
                    handle.complete(HttpResponse("done"))
                raise ZeroDivisionError
            return HttpResponse("done")

        try:
            if what == "hook raises":
                with pytest.raises(ZeroDivisionError):
                    post(leased(work))
            else:
                response = post(leased(work, store_5xx=True))
                assert problem(response) == (503, "not_replicated")
            if what != "step":
                unconfirmed = post(leased(lambda request: HttpResponse("done")))
                assert problem(unconfirmed) == (503, "not_replicated")
        finally:
            operator.stop()
            names(looking, "")
        again = post(leased(lambda request: HttpResponse("done")))
        assert again.content == b"done"
        connection.close()


def test_unconfirmed_async_step_is_503(transactional_db, cluster):
    with switched_to(cluster), psycopg.connect(cluster.url, autocommit=True) as looking:
        looking.execute("SET synchronous_commit = local")
        looking.execute("TRUNCATE django_dblock_idempotencykey")
        operator = Operator(cluster.url)

        async def work(request):
            operator.start()
            names(looking, "ghost")
            until_commits_wait(cluster.url)
            await request.idempotency.arun_step("charge", nothing)
            return HttpResponse()

        async def nothing():
            return 1

        try:
            assert problem(aleasing.post(aleasing.leased(work))) == (503, "not_replicated")
        finally:
            operator.stop()
            names(looking, "")
        connection.close()


def test_testcase_hooks_are_only_the_views():
    """Tests count them, and the transaction of TestCase never commits."""

    class Case(TestCase):
        def test(self):
            with self.captureOnCommitCallbacks() as hooks:
                ask(paying)
                ask_joined(paying)
            assert hooks == []

    result = unittest.TestResult()
    unittest.TestSuite([Case("test")]).run(result)
    assert result.wasSuccessful(), result.errors + result.failures


def test_autocommit_off_needs_no_hook():
    transaction.set_autocommit(False)
    try:
        ask(paying)
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert rows() == 1


def test_watch_stays_with_the_connection():
    """One handler, however many calls; other warnings do not count."""
    for _ in range(3):
        ask(paying)
    assert len(connection.connection._notice_handlers) == 1
    watch = watch_commits(connection)
    before = watch.unconfirmed
    with connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN RAISE WARNING 'SyncRepWaitForLSN'; END $$")
    assert watch.unconfirmed == before


def test_rolled_back_run_marks_nothing():
    @idempotent(scope=client)
    def failing(request, how):
        add_one()
        return HttpResponse(status=500)

    assert ask(failing).status_code == 500
    assert (effects(), rows()) == (0, 0)
