"""``@idempotent(mode="lease")``: claim, run, complete; whoever was taken over has no effects."""

import json
from contextlib import nullcontext, suppress
from datetime import timedelta

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import Http404, HttpResponse, JsonResponse, StreamingHttpResponse

from django_dblock import IdempotencyKey, idempotent, purge_idempotency_keys, run_once, signals
from django_dblock.exceptions import IdempotencyError, IdempotencyLeaseLost
from django_dblock.idempotency import store
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter
from tests.conftest import conninfo
from tests.helpers import backends
from tests.idempotency.leasing import (
    Died,
    die,
    effect,
    effects,
    end_retention,
    expire,
    leased,
    post,
    request,
    row,
    unable_to_give_up,
    update,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

VIEW = leased(effect)


def code(response):
    return json.loads(response.content)["code"]


@pytest.fixture
def told():
    """The signals that were sent, in their order."""
    sent = []
    handlers = {}
    for name in ("executed", "replayed", "refused", "taken_over"):
        signal = getattr(signals, f"idempotent_{name}")

        def handler(*, signal, sender, name=name, **facts):
            assert sender is IdempotencyKey
            assert facts["mode"] == "lease"
            assert facts["key"] == "k…"
            sent.append((name, facts.get("code", facts.get("token"))))

        handlers[signal] = handler
        signal.connect(handler)
    yield sent
    for signal, handler in handlers.items():
        signal.disconnect(handler)


# The claim


def test_claim_is_committed_before_the_view_runs(observer):
    def look(request):
        seen = observer.execute(
            "SELECT token, completed_at, locked_until > now(), owner"
            " FROM django_dblock_idempotencykey"
        ).fetchone()
        return JsonResponse([seen[0], seen[1], seen[2], ":" in seen[3]], safe=False)

    assert json.loads(post(leased(look)).content) == [row().token, None, True, True]


def test_first_request_runs_and_retry_replays(told):
    first, again = post(VIEW), post(VIEW)
    assert (first.status_code, first.content) == (201, b'{"value": 1}')
    assert "Idempotent-Replayed" not in first.headers
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert effects() == 1
    assert told == [("executed", None), ("replayed", None)]


def test_running_request_is_409():
    def ask_again(request):
        twin = post(view)
        assert twin.headers["Retry-After"] == "5"
        return HttpResponse(code(twin))

    view = leased(ask_again)
    assert post(view).content == b"in_progress"
    assert effects() == 0


def test_retry_after_is_at_most_the_lease():
    view = leased(lambda request: HttpResponse(post(view).headers["Retry-After"]), lease=2)
    assert post(view).content == b"2"


@pytest.mark.parametrize("state", ["leased", "free", "abandoned", "done"])
def test_other_request_with_the_key_is_422_before_409(state, told):
    """422 before 409: to ask again will not help."""

    def work(request):
        if state == "leased":
            return HttpResponse(code(post(view, body=b"other")))
        if state == "done":
            return effect()
        request.idempotency.run_step("a", lambda: 1)
        raise RuntimeError

    view = leased(work)
    if state == "leased":
        assert post(view).content == b"key_reused"
    elif state == "done":
        post(view)
    elif state == "free":
        with pytest.raises(RuntimeError):
            post(view)
    else:
        die()
    if state != "leased":
        answer = post(view, body=b"other")
        assert (answer.status_code, code(answer)) == (422, "key_reused")
    assert ("refused", "key_reused") in told


def test_waiter_gets_the_response(monkeypatch):
    """The look that finds it running is followed by one that finds it done."""
    pauses = []

    def finish(seconds):
        pauses.append(seconds)
        expire()
        other = leased(effect)
        assert post(other).status_code == 201

    monkeypatch.setattr("django_dblock.idempotency.lease_mode.time.sleep", finish)
    die()
    update("locked_until = clock_timestamp() + interval '1 hour'")
    answer = post(leased(effect, wait=30))
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert (len(pauses), effects()) == (1, 1)
    assert 0 < pauses[0] <= 0.5


def test_timed_out_wait_is_409():
    die()
    update("locked_until = clock_timestamp() + interval '1 hour'")
    assert code(post(leased(effect, wait=0.05))) == "in_progress"


def test_wait_ends_if_an_operator_must_decide(monkeypatch):
    monkeypatch.setattr("django_dblock.idempotency.lease_mode.time.sleep", None)
    die(on_abandoned="refuse")
    assert code(post(leased(effect, wait=30, on_abandoned="refuse"))) == "abandoned"


# Takeover


def test_abandoned_run_is_taken_over_with_its_steps(told):
    die("charge")

    def work(request):
        step = request.idempotency.run_step("charge", lambda: {"by": "me"})
        return JsonResponse([request.idempotency.token, step], safe=False)

    dead = row().token
    token, step = json.loads(post(leased(work)).content)
    assert (token > dead, step) == (True, {"by": "the dead"})
    assert told == [("taken_over", token), ("executed", None)]


def test_trap_claim_without_token():
    """Its effects roll back with its complete(), and its client gets the winner's answer."""

    def zombie(request):
        with transaction.atomic():
            add_one()
            expire()
            return request.idempotency.complete(HttpResponse(b"zombie"))

    def zombie_taken_over(request):
        expire()
        assert post(VIEW).content == b'{"value": 1}'
        with transaction.atomic():
            add_one()
            return request.idempotency.complete(HttpResponse(b"zombie"))

    answer = post(leased(zombie_taken_over))
    assert answer.content == b'{"value": 1}'
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert effects() == 1
    assert bytes(row().body) == b'{"value": 1}'
    # An expired lease alone is no loss: nobody else has it.
    assert post(leased(zombie), key='"other"').content == b"zombie"


def test_stale_run_beside_a_running_winner_is_409(told):
    def zombie(request):
        update("token = token + 1")
        with transaction.atomic():
            add_one()
            request.idempotency.complete(HttpResponse(b"zombie"))

    answer = post(leased(zombie))
    assert (answer.status_code, code(answer)) == (409, "in_progress")
    assert effects() == 0
    assert told == [("refused", "in_progress")]


def test_stale_run_does_not_overwrite_the_winner():
    def zombie(request):
        expire()
        post(VIEW)
        return HttpResponse(b"zombie")

    answer = post(leased(zombie))
    assert answer.content == b'{"value": 1}'
    assert bytes(row().body) == answer.content


@pytest.mark.parametrize("state", ["new", "after a step", "within a step"])
def test_stale_run_that_fails_frees_nothing(state):
    """Its row is neither removed, nor freed, nor abandoned: the winner is at work on it."""

    def zombie(request):
        run = request.idempotency
        if state == "after a step":
            run.run_step("a", lambda: 1)
        with run.step("b") if state == "within a step" else nullcontext():
            update("token = token + 1, owner = 'winner'")
            raise ZeroDivisionError

    options = {"on_abandoned": "refuse"} if state == "within a step" else {}
    with pytest.raises(ZeroDivisionError):
        post(leased(zombie, **options))
    assert row().owner == "winner"
    assert code(post(leased(effect, **options))) == "in_progress"
    assert effects() == 0


@pytest.mark.parametrize(
    "meanwhile",
    [
        "locked_until = clock_timestamp() + interval '1 hour'",
        (
            "token = token + 1, locked_until = NULL, completed_at = clock_timestamp(),"
            " status_code = 200, body = 'by a person'"
        ),
    ],
    ids=["its last step was recorded", "a person has answered it"],
)
def test_request_changed_since_the_look_is_not_taken_over(meanwhile, monkeypatch):
    """A step, and a person, take no advisory lock: the claim looks at the row once more."""
    die("a")
    claim = store.claim

    def claim_later(*arguments, **more):
        with psycopg.connect(conninfo(), autocommit=True) as other:
            other.execute(f"UPDATE django_dblock_idempotencykey SET {meanwhile}")
        return claim(*arguments, **more)

    monkeypatch.setattr(store, "claim", claim_later)
    assert code(post(VIEW)) == "in_progress"
    assert effects() == 0
    assert row().owner.count(":") == 2
    assert row().steps == {"a": {"result": {"by": "the dead"}}}


@pytest.mark.parametrize("what", ["step", "guard", "complete"])
def test_stale_run_fails_at_its_next_step(what):
    losses = []

    def zombie(request):
        update("token = token + 1")
        handle = request.idempotency
        try:
            if what == "step":
                handle.run_step("a", lambda: 1)
            elif what == "guard":
                with handle.guard():
                    add_one()
            else:
                handle.complete(HttpResponse())
        except IdempotencyLeaseLost as error:
            losses.append(error)
            raise

    assert code(post(leased(zombie))) == "in_progress"
    assert (losses[0].key, losses[0].scope) == ("k…", "scope:client")
    assert losses[0].token == row().token - 1
    assert effects() == 0
    assert row().steps == {}


def test_swallowed_lease_loss_is_a_loss():
    def zombie(request):
        update("token = token + 1")
        with pytest.raises(IdempotencyLeaseLost):
            request.idempotency.run_step("a", lambda: 1)
        return HttpResponse(b"swallowed")

    assert code(post(leased(zombie))) == "in_progress"
    assert row().completed_at is None


def test_swallowed_local_expiry_is_a_loss(monkeypatch):
    """Though nobody has taken it over yet, what it says after that is not kept."""

    def late(request):
        monkeypatch.setattr(request.idempotency.lease, "_until", 0)
        with pytest.raises(IdempotencyLeaseLost):
            request.idempotency.run_step("a", effect)
        return HttpResponse(b"swallowed")

    assert code(post(leased(late))) == "in_progress"
    assert row().completed_at is None


def test_stale_run_of_a_deleted_request_is_retryable():
    def zombie(request):
        IdempotencyKey.objects.all().delete()
        request.idempotency.run_step("a", lambda: 1)

    assert code(post(leased(zombie))) == "in_progress"


def test_locally_expired_run_starts_no_step(monkeypatch):
    def late(request):
        clock = request.idempotency.lease
        monkeypatch.setattr(clock, "_until", 0)
        request.idempotency.run_step("a", effect)

    assert code(post(leased(late))) == "in_progress"
    assert effects() == 0


def test_step_renews_the_lease():
    def long(request):
        expire()
        request.idempotency.run_step("a", lambda: 1)
        return HttpResponse(code(post(view)))

    view = leased(long)
    assert post(view).content == b"in_progress"


def test_open_guard_prevents_a_takeover():
    """The row is locked, and passed over: 409 at once, no waiting for the other transaction."""
    die()
    with psycopg.connect(conninfo()) as guard:
        guard.execute("SELECT FROM django_dblock_idempotencykey FOR NO KEY UPDATE")
        assert code(post(VIEW)) == "in_progress"
    assert post(VIEW).status_code == 201


def test_request_can_be_completed_in_a_guard(connect):
    rival = connect()

    def work(request):
        with request.idempotency.guard():
            add_one()
            rows = rival.execute(
                "SELECT id FROM django_dblock_idempotencykey FOR UPDATE SKIP LOCKED"
            ).fetchall()
            return request.idempotency.complete(JsonResponse(rows, safe=False))

    assert post(leased(work)).content == b"[]"
    assert effects() == 1


# Where a person has to look

REFUSE = {"on_abandoned": "refuse"}


def test_abandoned_run_under_refuse_waits_for_an_operator():
    die(**REFUSE)
    answer = post(leased(effect, **REFUSE))
    assert (answer.status_code, code(answer)) == (409, "abandoned")
    assert "Retry-After" not in answer.headers
    assert row().expires_at is None


def test_completed_request_has_a_retention():
    post(leased(effect, **REFUSE, ttl=timedelta(days=7)))
    assert row().expires_at - row().completed_at > timedelta(days=6)


def test_error_in_a_step_leaves_it_in_doubt():
    def work(request):
        request.idempotency.run_step("a", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        post(leased(work, **REFUSE))
    assert code(post(leased(effect, **REFUSE))) == "abandoned"


def test_error_outside_a_step_leaves_no_doubt():
    def work(request):
        request.idempotency.run_step("a", lambda: 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        post(leased(work, **REFUSE))
    assert post(leased(effect, **REFUSE)).status_code == 201


def test_inner_step_keeps_the_outer_step_in_doubt():
    def work(request):
        with request.idempotency.step("outer"):
            request.idempotency.run_step("inner", lambda: 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        post(leased(work, **REFUSE))
    assert code(post(leased(effect, **REFUSE))) == "abandoned"


def test_step_with_a_rolled_back_record_is_in_doubt():
    def work(request):
        with transaction.atomic():
            request.idempotency.run_step("charge", lambda: 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        post(leased(work, **REFUSE))
    assert code(post(leased(effect, **REFUSE))) == "abandoned"


def test_successful_retry_of_a_step_ends_the_doubt():
    def work(request):
        with pytest.raises(ZeroDivisionError):
            request.idempotency.run_step("a", lambda: 1 / 0)
        request.idempotency.run_step("a", lambda: 1)
        raise KeyError

    with pytest.raises(KeyError):
        post(leased(work, **REFUSE))
    assert post(leased(effect, **REFUSE)).status_code == 201


@pytest.mark.parametrize("state", ["free", "abandoned"])
def test_atomic_mode_leaves_unfinished_lease_requests_alone(state):
    die("a")
    if state == "free":
        update("locked_until = NULL")
    atomic = idempotent(scope=client)(lambda request: effect())
    assert code(post(atomic)) == "abandoned"
    assert effects() == 0


# How a run ends


def test_first_call_with_a_step_sends_four_statements(statements):
    def work(request):
        request.idempotency.run_step("a", lambda: 1)
        return request.idempotency.complete(HttpResponse())

    connection.ensure_connection()
    with statements() as sent:
        post(leased(work))
    assert len([query for query in sent if "idempotencykey" in query["sql"]]) == 4


@pytest.mark.parametrize("how", [RuntimeError, Http404, KeyboardInterrupt, 500, 408])
def test_failed_run_frees_its_key(how, told):
    def work(request):
        if isinstance(how, int):
            return HttpResponse(status=how)
        raise how

    if isinstance(how, int):
        assert post(leased(work)).status_code == how
    else:
        with pytest.raises(how):
            post(leased(work))
    assert not IdempotencyKey.objects.exists()
    assert told == []


def fail_in_a_step(request):
    request.idempotency.run_step("charge", lambda: 1 / 0)


def fail_with_a_derived_key(request):
    request.idempotency.derived_key("charge")
    return 1 / 0


def fail_by_a_500_with_a_derived_key(request):
    request.idempotency.derived_key("charge")
    return HttpResponse(status=500)


def fail_after_a_rolled_back_step(request):
    with transaction.atomic():
        request.idempotency.run_step("charge", lambda: 1)
        return 1 / 0


@pytest.mark.parametrize("on_abandoned", ["takeover", "refuse"])
@pytest.mark.parametrize(
    "work",
    [
        fail_in_a_step,
        fail_with_a_derived_key,
        fail_by_a_500_with_a_derived_key,
        fail_after_a_rolled_back_step,
    ],
)
def test_key_that_others_may_know_is_bound_to_its_request(work, on_abandoned):
    """The gateway may have charged the first amount under the derived key."""
    options = {"on_abandoned": on_abandoned}
    with suppress(ZeroDivisionError):
        post(leased(work, **options), body=b'{"amount": 10}')
    assert code(post(leased(effect, **options), body=b'{"amount": 20}')) == "key_reused"
    retried = post(leased(effect, **options), body=b'{"amount": 10}')
    asked_for_a_person = on_abandoned == "refuse" and work in {
        fail_in_a_step,
        fail_after_a_rolled_back_step,
    }
    assert retried.status_code == (409 if asked_for_a_person else 201)


def die_with_a_derived_key(request):
    request.idempotency.derived_key("charge")
    raise Died


@pytest.mark.parametrize("first", [fail_with_a_derived_key, die_with_a_derived_key])
@pytest.mark.parametrize("retry", [lambda request: 1 / 0, lambda request: HttpResponse(status=503)])
def test_retry_that_fails_early_leaves_the_key_bound(first, retry):
    """The retry derives no key itself. The gateway has the one of the first run."""
    died = first is die_with_a_derived_key
    unable = unable_to_give_up if died else nullcontext
    with unable(), pytest.raises((ZeroDivisionError, Died)):
        post(leased(first), body=b'{"amount": 10}')
    if died:
        expire()
    with suppress(ZeroDivisionError):
        post(leased(retry), body=b'{"amount": 10}')
    assert code(post(leased(effect), body=b'{"amount": 20}')) == "key_reused"
    assert post(leased(effect), body=b'{"amount": 10}').status_code == 201


@pytest.mark.parametrize(
    ("work", "on_abandoned"),
    [
        (fail_in_a_step, "takeover"),
        (fail_with_a_derived_key, "takeover"),
        (fail_with_a_derived_key, "refuse"),
    ],
)
def test_bound_key_is_free_after_its_retention(work, on_abandoned):
    with pytest.raises(ZeroDivisionError):
        post(leased(work, on_abandoned=on_abandoned), body=b'{"amount": 10}')
    assert timedelta(hours=23) < row().expires_at - row().created_at < timedelta(hours=25)
    end_retention()
    assert purge_idempotency_keys() == 1
    assert post(leased(effect), body=b'{"amount": 20}').status_code == 201


def test_recorded_step_has_no_time_limit_where_a_person_decides():
    def work(request):
        request.idempotency.run_step(request.idempotency.derived_key("a")[:5], lambda: 1)
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        post(leased(work, **REFUSE))
    assert row().expires_at is None


@pytest.mark.parametrize("how", ["raised", "returned"])
def test_trap_permanent_409_after_a_crash(how, told):
    """With steps the row stays, and the next retry goes on after them at once."""
    calls, tokens = [], set()

    def work(request):
        request.idempotency.run_step("charge", lambda: calls.append(1))
        tokens.add(request.idempotency.token)
        if len(tokens) == 2:
            return HttpResponse(b"done")
        if how == "raised":
            raise RuntimeError
        return HttpResponse(status=503)

    view = leased(work)
    if how == "raised":
        with pytest.raises(RuntimeError):
            post(view)
    else:
        assert post(view).status_code == 503
    assert row().locked_until is None
    assert post(view).content == b"done"
    assert calls == [1]
    assert told == [("taken_over", max(tokens)), ("executed", None)]


def test_returned_4xx_is_stored_and_replayed():
    view = leased(lambda request: HttpResponse(effect().content, status=422))
    assert post(view).status_code == post(view).status_code == 422
    assert effects() == 1


def test_error_while_releasing_does_not_hide_the_views_error(monkeypatch):
    failed = []

    def fail(*arguments):
        failed.append(arguments)
        raise OperationalError("gone")

    def work(request):
        monkeypatch.setattr("django_dblock.idempotency.store.write", fail)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        post(leased(work))
    assert len(failed) == 1


def test_complete_stores_its_response_for_good(told):
    def work(request):
        with transaction.atomic():
            add_one()
            response = request.idempotency.complete(JsonResponse({"value": 1}))
        assert row().completed_at is not None
        return response

    view = leased(work)
    assert post(view).content == post(view).content == b'{"value": 1}'
    assert told == [("executed", None), ("replayed", None)]


def test_error_after_complete_keeps_the_response():
    def work(request):
        request.idempotency.complete(effect())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        post(leased(work))
    assert post(leased(work)).status_code == 201
    assert effects() == 1


AFTERWARDS = {
    "step": lambda run: run.run_step("late", add_one),
    "guard": lambda run: run.guard().__enter__(),
    "complete": lambda run: run.complete(HttpResponse(b"second")),
}


@pytest.mark.parametrize("what", AFTERWARDS)
@pytest.mark.parametrize("inside", [False, True], ids=["after", "in its transaction"])
def test_error_after_complete_says_response_is_recorded(what, inside, told):
    """Nobody else has the request: this run has ended it, and the answer stays what it was."""
    errors = []

    def late(run):
        try:
            AFTERWARDS[what](run)
        except IdempotencyError as error:
            errors.append(error)
            raise

    def work(request):
        run = request.idempotency
        with transaction.atomic():
            response = run.complete(HttpResponse(b"first"))
            if inside:
                with pytest.raises(IdempotencyError):
                    with transaction.atomic():
                        late(run)
        if not inside:
            late(run)
        return response

    view = leased(work)
    if inside:
        assert post(view).content == b"first"
    else:
        with pytest.raises(IdempotencyError):
            post(view)
    [error] = errors
    assert not isinstance(error, IdempotencyLeaseLost)
    assert "recorded" in str(error)
    assert "taken" not in str(error)
    assert (error.key, error.scope, error.using) == ("k…", "scope:client", "default")
    assert effects() == 0
    again = post(view)
    assert (again.content, again.headers["Idempotent-Replayed"]) == (b"first", "true")


def test_rolled_back_complete_lets_the_run_continue():
    def work(request):
        run = request.idempotency
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            run.complete(HttpResponse(b"first"))
            raise ZeroDivisionError
        run.run_step("again", add_one)
        with run.guard():
            return run.complete(HttpResponse(b"second"))

    assert post(leased(work)).content == b"second"
    assert effects() == 1


def set_rollback():
    transaction.set_rollback(True)


def swallow_an_error_of_the_orm():
    with suppress(DatabaseError):
        Counter.objects.create(name=None)


def swallow_an_error_of_a_cursor():
    """Django does not notice, sends COMMIT and runs the hooks; the server rolls back."""
    with suppress(DatabaseError):
        connection.cursor().execute("SELECT 1/0")


SILENTLY = [set_rollback, swallow_an_error_of_the_orm, swallow_an_error_of_a_cursor]


class TestSilentRollback:
    """The transaction of the response is gone, and no exception says so."""

    @pytest.fixture(params=backends.BACKENDS, autouse=True)
    def _backend(self, request):
        with backends.installed(request.param):
            yield

    @pytest.mark.parametrize("roll_back", SILENTLY)
    def test_its_response_is_not_stored(self, roll_back):
        def work(request):
            with transaction.atomic():
                response = request.idempotency.complete(effect())
                if roll_back is not None:
                    roll_back()
            return response

        with pytest.raises(TransactionManagementError, match="what it has recorded for the idemp"):
            post(leased(work))
        assert effects() == 0
        assert not IdempotencyKey.objects.exists(), "it may run again"
        roll_back = None
        assert post(leased(work)).status_code == 201

    @pytest.mark.parametrize("roll_back", SILENTLY)
    def test_result_of_run_once_is_not_stored(self, roll_back):
        def work(handle):
            with transaction.atomic():
                add_one()
                handle.complete(None)
                roll_back()

        with pytest.raises(TransactionManagementError):
            run_once("settle", work=work, mode="lease")
        assert effects() == 0
        assert not IdempotencyKey.objects.exists()

    @pytest.mark.parametrize("roll_back", SILENTLY)
    def test_step_is_not_done(self, roll_back):
        seen = []

        def work(request):
            run = request.idempotency
            with suppress(TransactionManagementError), transaction.atomic():
                run.run_step("reserve", add_one)
                roll_back()
            with run.step("reserve") as step:
                seen.append(step.done)
            return HttpResponse()

        assert post(leased(work)).status_code == 200
        assert seen == [False]

    def test_step_that_django_believes_committed_raises(self):
        def work(request):
            with transaction.atomic():
                request.idempotency.run_step("reserve", add_one)
                swallow_an_error_of_a_cursor()

        with pytest.raises(TransactionManagementError):
            post(leased(work))
        assert effects() == 0

    @pytest.mark.parametrize("what", ["complete", "step"])
    def test_hooks_of_the_view_do_not_run(self, what):
        """Else a customer gets the receipt of a payment that was rolled back."""
        sent = []

        def work(request):
            with transaction.atomic():
                transaction.on_commit(lambda: sent.append("receipt"))
                if what == "complete":
                    request.idempotency.complete(effect())
                else:
                    request.idempotency.run_step("reserve", add_one)
                swallow_an_error_of_a_cursor()

        with pytest.raises(TransactionManagementError):
            post(leased(work))
        assert sent == []

    def test_request_taken_over_meanwhile_is_lost(self, monkeypatch):
        """Between the end of the transaction and the look at what is left of it."""
        plain = store.is_completed

        def is_completed(*claimed):
            monkeypatch.undo()
            expire()
            assert post(VIEW).status_code == 201
            return plain(*claimed)

        def work(request):
            monkeypatch.setattr(store, "is_completed", is_completed)
            with transaction.atomic():
                response = request.idempotency.complete(HttpResponse(b"gone"))
                swallow_an_error_of_a_cursor()
            return response

        answer = post(leased(work))
        assert (answer.content, answer.headers["Idempotent-Replayed"]) == (b'{"value": 1}', "true")

    def test_response_that_reports_an_error_is_stored(self):
        """As in atomic mode, where its effects are undone in the same way."""

        def work(request):
            with transaction.atomic():
                response = request.idempotency.complete(HttpResponse(b"sold out", status=409))
                transaction.set_rollback(True)
            return response

        assert post(leased(work)).status_code == 409
        assert post(leased(work)).headers["Idempotent-Replayed"] == "true"

    def test_another_response_is_stored(self):
        def work(request):
            with suppress(ZeroDivisionError), transaction.atomic():
                request.idempotency.complete(HttpResponse(b"first"))
                raise ZeroDivisionError
            return HttpResponse(b"second")

        assert post(leased(work)).content == b"second"
        assert post(leased(work)).content == b"second"


def test_response_that_no_standby_has_confirmed_is_not_given_after_a_loss():
    def work(request):
        expire()
        assert post(VIEW).status_code == 201
        store.mark_unconfirmed(request.idempotency.identity)  # as after a wait that was cut short
        return HttpResponse(b"late")

    answer = post(leased(work))
    assert (answer.status_code, code(answer)) == (503, "not_replicated")


def test_failing_hook_of_the_view_hides_no_record():
    """Django ends at the first hook that raises."""

    def work(request):
        run = request.idempotency
        with suppress(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: 1 / 0)
            run.run_step("a", lambda: 1)
        assert run.step("a").done
        with suppress(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: 1 / 0)
            run.complete(HttpResponse())
        with pytest.raises(IdempotencyError, match="recorded its response already"):
            run.step("b").__enter__()
        raise KeyError

    with pytest.raises(KeyError):
        post(leased(work, **REFUSE))
    assert row().completed_at is not None


def test_unstorable_response_rolls_back_its_complete():
    def work(request):
        with transaction.atomic():
            add_one()
            request.idempotency.complete(HttpResponse(b"x" * 1_048_577))

    answer = post(leased(work))
    assert (answer.status_code, code(answer)) == (500, "unstorable")
    assert effects() == 0
    assert not IdempotencyKey.objects.exists()


def test_problem_never_claims_committed_effects_are_undone(caplog):
    def work(request):
        add_one()
        return StreamingHttpResponse([b"paid"])

    answer = post(leased(work))
    assert (answer.status_code, code(answer)) == (500, "unstorable")
    assert effects() == 1
    assert b"nothing was done" not in answer.content
    assert b"some effects of the request may stay" in answer.content
    assert "What the view has committed stays." in caplog.text
    assert "rolled back" not in caplog.text


# Steps


@pytest.mark.parametrize("result", [None, {"a": [1, {"b": "ü"}]}, "\\u0000", "\\\\u0000", 1.5])
def test_step_result_round_trips(result):
    def work(request):
        with request.idempotency.step("a") as step:
            assert not step.done
            step.result = result
        with request.idempotency.step("a") as step:
            assert step.done
        assert step.result == result
        raise RuntimeError

    with pytest.raises(RuntimeError):
        post(leased(work))
    assert row().steps == {"a": {"result": result}}


def test_run_step_returns_the_stored_form():
    def work(request):
        return HttpResponse(repr(request.idempotency.run_step("a", lambda: (1, timedelta(1)))))

    assert post(leased(work)).content == b"[1, 'P1DT00H00M00S']"


@pytest.mark.parametrize("result", ["a\0b", "\\\0", {"\0": 1}, "\ud800", float("nan"), object()])
def test_unstorable_step_result_is_an_error(result):
    def work(request):
        request.idempotency.run_step("a", lambda: result)

    with pytest.raises(ValueError, match="The result of step 'a'"):
        post(leased(work))


def test_steps_are_refused_in_atomic_mode():
    atomic = idempotent(scope=client)(lambda request: request.idempotency.step("a"))
    with pytest.raises(TypeError, match="mode='lease'"):
        post(atomic)


# The handle


@pytest.mark.parametrize("sent", [{"key": None}, {"method": "GET", "key": '"key"'}])
def test_missing_optional_key_runs_unprotected(sent, told):
    def work(request):
        handle = request.idempotency
        assert not handle.protected
        assert (handle.key, handle.scope, handle.mode, handle.token) == (None,) * 4
        assert handle.derived_key("a") != handle.derived_key("a")
        assert handle.run_step("a", lambda: 1) == handle.run_step("a", lambda: 1) == 1
        with handle.guard():
            assert connection.in_atomic_block
        return handle.complete(effect())

    view = leased(work, required=False)
    assert [post(view, **sent).content for _ in range(2)] == [b'{"value": 1}', b'{"value": 2}']
    assert not IdempotencyKey.objects.exists()
    assert told == []


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("how", ["using", "DBLOCK_DATABASE", "router"])
@pytest.mark.parametrize(
    "sent", [{"key": None}, {"method": "GET"}, {}], ids=["no key", "GET", "protected"]
)
def test_unprotected_guard_uses_the_keys_database(how, sent, settings):
    open_on = []

    def work(request):
        with request.idempotency.guard():
            open_on.extend(each.alias for each in connections.all() if each.in_atomic_block)
        return HttpResponse()

    if how == "DBLOCK_DATABASE":
        settings.DBLOCK_DATABASE = "other"
    elif how == "router":
        settings.DATABASE_ROUTERS = [f"{__name__}.ToOther"]
    options = {"using": "other"} if how == "using" else {}
    post(leased(work, required=False, **options), **sent)
    assert open_on == ["other"]


class ToOther:
    def db_for_write(self, model, **hints):
        return "other" if model is IdempotencyKey else None


def test_handle_exists_only_during_the_run():
    def work(request):
        handle = request.idempotency
        assert handle.protected
        return JsonResponse([handle.key, handle.scope, handle.mode, handle.token], safe=False)

    asked = request()
    assert json.loads(leased(work)(asked).content) == ["key", "scope:client", "lease", row().token]
    assert not hasattr(asked, "idempotency")


def test_derived_keys_are_stable():
    seen = []

    def work(request):
        seen.append(request.idempotency.derived_key("charge"))
        assert request.idempotency.derived_key("refund") != seen[-1]
        if len(seen) == 1:
            raise RuntimeError
        return HttpResponse()

    view = leased(work)
    with pytest.raises(RuntimeError):
        post(view)
    post(view)
    end_retention()
    post(view)
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert len(seen[0]) == 64
    post(view, key='"other"')
    assert seen[3] != seen[0]


def test_derived_keys_differ_between_clients():
    """Else the gateway would take the second client's charge for a repeat of the first's."""
    seen = []

    def work(request):
        seen.append(request.idempotency.derived_key("charge"))
        return HttpResponse()

    for name in ("ann", "bob"):
        post(idempotent(mode="lease", scope=lambda request, name=name: name)(work))
    assert len(set(seen)) == 2


@pytest.mark.parametrize("state", ["done", "free", "abandoned"])
def test_request_past_retention_is_new(state, told):
    if state == "done":
        post(leased(lambda request: HttpResponse(request.idempotency.run_step("a", lambda: "1"))))
    else:
        die("a")
    if state == "free":
        update("locked_until = NULL")
    end_retention()
    told.clear()
    before = row().token

    def work(request):
        assert not request.idempotency.step("a").done
        return effect()

    assert post(leased(work), body=b"another").status_code == 201
    assert row().token > before
    assert told == [("executed", None)]


def test_live_lease_outlives_its_retention():
    """A ttl shorter than the lease: the request is not begun a second time for that."""
    view = leased(lambda request: HttpResponse(code(post(view))), ttl=0.001)
    assert post(view).content == b"in_progress"


# Transactions


def test_open_transaction_error_says_what_to_change():
    with transaction.atomic(), pytest.raises(ImproperlyConfigured, match="non_atomic_requests"):
        post(VIEW)


def test_autocommit_off_is_refused():
    connection.set_autocommit(False)
    try:
        with pytest.raises(ImproperlyConfigured, match="open transaction"):
            post(VIEW)
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def test_function_view_opts_out_of_atomic_requests(client, monkeypatch, settings):
    from django.urls import path

    class Urls:
        urlpatterns = (path("leased/", VIEW),)

    settings.ROOT_URLCONF = Urls
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    assert client.post("/leased/", headers={"Idempotency-Key": "a"}).status_code == 201


@pytest.mark.django_db(transaction=False)
def test_testcase_transaction_is_ignored():
    assert post(VIEW).content == post(VIEW).content == b'{"value": 1}'

    def work(request):
        with transaction.atomic():
            return request.idempotency.complete(HttpResponse(b"completed"))

    assert post(leased(work), key='"other"').content == b"completed"


@pytest.mark.django_db(transaction=False)
def test_testcase_step_is_recorded_at_block_exit():
    """As by its own commit in real life, and as by no hook: TestCase runs none."""

    def work(request):
        run = request.idempotency
        until = run.lease._until
        assert not run.step("a").done
        run.run_step("a", add_one)
        assert run.step("a").done
        assert run.step("a").result == 1
        assert run.run_step("a", add_one) == 1
        assert run.lease._until > until
        raise ZeroDivisionError

    view = leased(work, **REFUSE)
    with pytest.raises(ZeroDivisionError):
        post(view)
    assert row().locked_until is None, "no doubt about the step"
    assert effects() == 1


@pytest.mark.django_db(transaction=False)
def test_testcase_step_in_a_transaction_is_not_done_in_the_run():
    """What the how-to says of tests: a real commit needs a TransactionTestCase."""

    def work(request):
        with transaction.atomic():
            request.idempotency.run_step("a", lambda: 1)
        assert not request.idempotency.step("a").done
        return HttpResponse()

    assert post(leased(work)).status_code == 200
    assert row().steps == {"a": {"result": 1}}


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize("what", AFTERWARDS)
def test_testcase_complete_ends_the_run(what):
    def work(request):
        request.idempotency.complete(HttpResponse(b"first"))
        AFTERWARDS[what](request.idempotency)

    with pytest.raises(IdempotencyError, match="recorded"):
        post(leased(work))
    assert effects() == 0


def test_snapshot_isolation_is_refused():
    from django_dblock import UnsafeIsolation

    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_isolation = 'repeatable read'")
    try:
        with pytest.raises(UnsafeIsolation):
            post(VIEW)
    finally:
        connection.close()


def test_killed_run_leaves_its_row_unfinished():
    """What the tests call dead is dead: its row is as it was."""
    die("a")
    assert row().steps == {"a": {"result": {"by": "the dead"}}}
    assert row().completed_at is None
