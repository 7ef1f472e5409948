"""The traps that other packages fell into, a test each, named after it.

Beside each stands its negative twin: the well-known recipe that falls into it.
"""

import ast
import json
import pickle
from pathlib import Path

import pytest
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse, JsonResponse
from django.template.response import ContentNotRenderedError
from django.utils.decorators import method_decorator
from rest_framework.decorators import api_view, authentication_classes
from rest_framework.response import Response
from rest_framework.views import APIView

import django_dblock
from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import client
from tests.app.models import Document
from tests.helpers import observe
from tests.helpers.processes import process
from tests.idempotency import calling, leasing, recipes
from tests.idempotency.calling import is_replay, problem
from tests.idempotency.crashing import first_call
from tests.idempotency.flight import DURING, charge, documents, pay, told

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.usefixtures("limited"),
    pytest.mark.loss,
]


def late(request, how):
    """Call the outside world; then effect and answer together, as far as the decorator goes."""
    for each in DURING:
        each()
    with transaction.atomic():
        response = JsonResponse({"document": str(Document.objects.create().pk)}, status=201)
        handle = getattr(request, "idempotency", None)
        return handle.complete(response) if handle else response


VIEWS = {
    "ours": idempotent(scope=client)(pay),
    "ours, lease": idempotent(scope=client, mode="lease")(charge),
    "ours, late": idempotent(scope=client, mode="lease")(late),
    "late": recipes.claim_without_token(late),
    **{
        name: getattr(recipes, name)(pay)
        for name in (
            "answers_409",
            "catches_integrity_error",
            "check_then_act",
            "claim_for_ever",
            "on_conflict",
            "pickled",
            "released_lock",
        )
    },
}
OURS = ["ours", "ours, lease"]


@pytest.fixture(autouse=True)
def _nothing_happens_during():
    yield
    DURING.clear()


def ask(name, **more):
    return calling.ask(VIEWS[name], **more)


def runs(channel, name):
    """Run a view, and stop inside it until told to go on."""

    def stop():
        channel.send("inside")
        return channel.receive()

    DURING.append(stop)
    return ask(name).status_code


def overlap(name):
    """Ask while the first run is inside its view: the second's status, the first's, the effects."""
    with process(runs, name) as first:
        assert first.receive() == "inside"
        second = ask(name)
        first.send(201)
        return second.status_code, first.receive(), len(documents())


def test_trap_lock_released_before_the_view_ran():
    assert overlap("ours") == (409, 201, 1)


def test_twin_lock_released_before_the_view_ran():
    assert overlap("released_lock") == (201, 201, 2)


def test_trap_check_then_act():
    assert overlap("ours, lease") == (409, 201, 1)


def test_twin_check_then_act():
    assert overlap("check_then_act") == (201, 201, 2)


# A claim without owner token, so a zombie overwrote the winner


def overtake(name):
    """The lease ends while the view is outside, and a retry runs to its end: zombie, winner."""
    winner = []

    def during():
        DURING.clear()
        leasing.expire()
        winner.append(told(ask(name)))

    DURING.append(during)
    return told(ask(name)), winner[0]


def test_trap_claim_without_owner_token():
    zombie, winner = overtake("ours, late")
    assert winner[:2] == (201, False)
    assert zombie == (201, True, winner[2])
    assert told(ask("ours, late")) == zombie
    assert documents() == [winner[2]]


def test_twin_claim_without_owner_token():
    zombie, winner = overtake("late")
    assert told(ask("late"))[2] == zombie[2] != winner[2]
    assert len(documents()) == 2


# 409 for ever after a crash


def crash(name, observer):
    with process(runs, name) as first:
        assert first.receive() == "inside"
        first.kill()
    observe.until(lambda: not observe.locks(observer), "the server has noticed")
    leasing.expire()
    return [ask(name).status_code for _ in range(2)]


@pytest.mark.parametrize("name", OURS)
def test_trap_permanent_409_after_a_crash(name, observer):
    assert crash(name, observer) == [201, 201]
    assert len(documents()) == 1


def test_twin_permanent_409_after_a_crash(observer):
    assert crash("claim_for_ever", observer) == [409, 409]


# Pickled responses


INTRUDED = []


def intrude(what):
    INTRUDED.append(what)
    return HttpResponse()


class Intruder:
    """What somebody who can write into the table may write there."""

    def __reduce__(self):
        return intrude, ("code of a stranger",)


def plant():
    INTRUDED.clear()
    IdempotencyKey.objects.update(body=pickle.dumps(Intruder()))


def test_trap_pickled_responses():
    first = ask("ours")
    row = IdempotencyKey.objects.get()
    assert bytes(row.body) == first.content
    assert row.headers == {"Content-Type": "application/json"}
    plant()
    assert ask("ours").content == pickle.dumps(Intruder())
    assert INTRUDED == []


def test_trap_pickled_responses_cannot_be_read():
    modules = set()
    for path in Path(django_dblock.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules.update(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    assert "json" in modules
    assert not modules & {"pickle", "_pickle", "marshal", "shelve", "dill", "django.core.cache"}


def test_twin_pickled_responses():
    ask("pickled")
    plant()
    ask("pickled")
    assert INTRUDED == ["code of a stranger"]


# Replay status 409


@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 404, 422])
def test_trap_replay_status_409(status):
    DURING.append(lambda: status)
    first = ask("ours")
    assert first.status_code == status
    assert is_replay(ask("ours"), of=first)


def test_twin_replay_status_409():
    assert ask("answers_409").status_code == 201
    assert ask("answers_409").status_code == 409


# Replay before authentication


def ask_as(user, view):
    def called(request, how):
        request.user = user
        return view(request, how)

    return calling.ask(called)


def test_trap_replay_before_authentication():
    ann = User.objects.create(username="ann")
    view = login_required(idempotent(pay))
    first = ask_as(ann, view)
    assert is_replay(ask_as(ann, view), of=first)
    assert ask_as(AnonymousUser(), view).status_code == 302


def test_trap_replay_before_authentication_in_wrong_order():
    """Where the decorator can't see what it stands around, no stranger gets an answer either."""
    ann = User.objects.create(username="ann")
    view = idempotent(login_required(pay))
    assert ask_as(ann, view).status_code == 201
    with pytest.raises(ImproperlyConfigured, match="the client is anonymous"):
        ask_as(AnonymousUser(), view)
    with pytest.raises(ImproperlyConfigured, match="a replay would skip the authorisation"):
        idempotent(scope=client)(api_view(["POST"])(pay))


def test_twin_replay_before_authentication():
    view = recipes.check_then_act(login_required(pay))
    first = ask_as(User.objects.create(username="ann"), view)
    assert is_replay(ask_as(AnonymousUser(), view), of=first)


# Decorators that crash on both documented usages with DRF after the effect has run


def answer(request, how):
    return Response({"document": str(Document.objects.create().pk)}, status=201)


def on_function(decorator):
    return api_view(["POST"])(authentication_classes([])(decorator(answer)))


def on_method(decorator):
    class Api(APIView):
        authentication_classes = ()

        @method_decorator(decorator)
        def post(self, request, how):
            return answer(request, how)

    return Api.as_view()


usages = pytest.mark.parametrize("usage", [on_function, on_method])


@usages
@pytest.mark.parametrize("mode", ["atomic", "lease"])
def test_trap_crash_with_rest_framework_after_the_effect(usage, mode):
    view = usage(idempotent(scope=client, mode=mode))
    first = calling.ask(view)
    assert first.status_code == 201
    assert is_replay(calling.ask(view), of=first)
    assert documents() == [json.loads(first.content)]


@usages
def test_twin_crash_with_rest_framework_after_the_effect(usage):
    view = usage(recipes.check_then_act)
    for effects in (1, 2):
        with pytest.raises(ContentNotRenderedError):
            calling.ask(view)
        assert len(documents()) == effects


# IntegrityError masked by TransactionManagementError


def conflicts(request, how):
    document = Document.objects.create()
    Document.objects.create(pk=document.pk)


@pytest.mark.parametrize("mode", ["atomic", "joined", "lease"])
def test_trap_integrity_error_is_masked(mode):
    """The view's own error is the one that is seen, and everything works after it."""
    view = idempotent(scope=client, mode="lease" if mode == "lease" else "atomic")(conflicts)
    ask = calling.ask_joined if mode == "joined" else calling.ask
    for _ in range(2):
        with pytest.raises(IntegrityError):
            ask(view)
    assert not IdempotencyKey.objects.exists()


def test_trap_integrity_error_of_two_records_is_masked():
    """They do not: the second is told before its view runs."""
    assert overlap("ours") == (409, 201, 1)


def test_twin_integrity_error_is_masked():
    with pytest.raises(TransactionManagementError):
        overlap("catches_integrity_error")


# Keys global across users


@pytest.mark.parametrize("name", OURS)
def test_trap_keys_global_across_users(name):
    ann, bob = (told(ask(name, **{"X-Client": who})) for who in ("ann", "bob"))
    assert bob[:2] == (201, False)
    assert ann[2] != bob[2]


def test_twin_keys_global_across_users():
    ann, bob = (told(ask("check_then_act", **{"X-Client": who})) for who in ("ann", "bob"))
    assert bob == (201, True, ann[2])


# ON CONFLICT DO NOTHING waits for the other transaction instead of answering


def waiting(observer):
    return observer.execute(
        "SELECT locktype FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND datname = current_database()"
    ).fetchall()


@pytest.mark.parametrize("name", OURS)
def test_trap_on_conflict_do_nothing_waits(name):
    """The answer is there while the other transaction is still open."""
    with process(runs, name) as first:
        first.receive()
        assert problem(ask(name)) == (409, "in_progress")
        first.send(201)
        assert first.receive() == 201


def test_trap_on_conflict_do_nothing_waits_for_a_claim():
    """Lease mode has such a statement, which is run under the lock alone."""
    with process(first_call, "lease") as first:
        while first.receive()[0] != "before COMMIT":
            first.send(True)
        leased = idempotent(scope=client, mode="lease")(lambda request: HttpResponse())
        assert problem(leasing.post(leased)) == (409, "in_progress")


def test_twin_on_conflict_do_nothing_waits(observer):
    with process(runs, "on_conflict") as first:
        first.receive()
        with process(runs, "on_conflict") as second:
            observe.until(lambda: waiting(observer), "the second waits")
            assert waiting(observer) == [("transactionid",)]
            first.send(201)
            assert (first.receive(), second.receive()) == (201, 409)
