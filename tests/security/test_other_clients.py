"""Responses of other clients: replayed, guessed, kept after a lost permission, tampered with."""

import itertools
import json
import pickletools
import re
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import HttpResponse
from django.test import RequestFactory

import django_dblock
from django_dblock import DamagedAnswer, IdempotencyKey, idempotent
from tests.app import idempotent_views as views
from tests.idempotency import calling, pages

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss]

PATHS, METHODS, KEYS = ("/pay/", "/refund/"), ("POST", "PATCH"), ("k", "3f1c0a52-91aa", '"k k"')


@idempotent
def secret(request):
    """It tells the client something that nobody else may read."""
    body = f"{request.user.username} {request.method} {request.path} secret-of-{request.user.pk}"
    response = HttpResponse(body, status=201)
    response.headers["Location"] = f"/secret-of-{request.user.pk}/"
    response.set_cookie("session", f"secret-of-{request.user.pk}")
    return response


def asks(user, path, method, key, body=b"{}"):
    request = RequestFactory().generic(
        method, path, body, content_type="application/json", headers={"Idempotency-Key": key}
    )
    request.user = user
    return secret(request)


def test_no_client_gets_a_byte_of_anothers_response():
    """Two users, all keys, paths and methods, in every order of the two."""
    users = [User.objects.create(username=name) for name in ("anna", "bert")]
    for path, method, key in itertools.product(PATHS, METHODS, KEYS):
        for user in (*users, *reversed(users)):
            answer = asks(user, path, method, key)
            other = users[1 - users.index(user)]
            told = answer.serialize() + answer.cookies.output().encode()
            assert other.username.encode() not in told
            assert f"secret-of-{other.pk}".encode() not in told
            assert answer.status_code in (201, 422)
            if answer.status_code == 201:
                assert f"secret-of-{user.pk}".encode() in told
    assert IdempotencyKey.objects.count() == len(users) * len(KEYS)


def test_key_of_another_client_is_handled_like_a_new_one(statements):
    """Statements and answer; so there is nothing to be timed, and nothing to be guessed."""
    anna, bert = (User.objects.create(username=name) for name in ("anna", "bert"))
    asks(anna, "/pay/", "POST", "annas-key")
    seen = []
    for key in ("annas-key", "other-key"):
        with statements() as sent:
            answer = asks(bert, "/pay/", "POST", key)
        texts = [re.sub(r"'[^']*'|-?\d+", "?", one["sql"]) for one in sent]
        cookies = answer.cookies.output()
        seen.append((answer.status_code, answer.content, dict(answer.headers), cookies, texts))
    assert seen[0] == seen[1]


def test_client_without_the_permission_gets_no_replay():
    """403, as for anybody without the right; and nothing is run."""
    user = User.objects.create(username="anna")
    user.user_permissions.add(Permission.objects.get(codename="add_counter"))
    view = pages.permitted_only

    def ask():
        request = calling.request()
        request.user = User.objects.get()
        return view(request, "201")

    assert ask().status_code == 201
    assert ask().headers["Idempotent-Replayed"] == "true"
    user.user_permissions.clear()
    with pytest.raises(PermissionDenied):
        ask()
    assert calling.effects() == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Set-Cookie": "session=stolen"},
        {"Location": "/\r\nSet-Cookie: session=stolen"},
        {"Location\r\nSet-Cookie": "session=stolen"},
        {"Location": 7},
        ["Location"],
    ],
)
def test_tampered_row_is_an_error(headers):
    calling.ask(views.default)
    IdempotencyKey.objects.update(headers=headers)
    with pytest.raises(DamagedAnswer, match="was changed by other code") as caught:
        calling.ask(views.default)
    assert (caught.value.using, caught.value.code) == ("default", "damaged")
    assert calling.effects() == 1  # and it is not run again


def test_unlisted_header_is_never_replayed(settings):
    """Also where it was on the list when the answer was kept, or was put there by somebody."""
    settings.DBLOCK_IDEMPOTENCY_HEADERS = ["X-Other"]
    calling.ask(views.default)
    assert calling.ask(views.default).headers["X-Other"] == "not kept"
    settings.DBLOCK_IDEMPOTENCY_HEADERS = []
    row = IdempotencyKey.objects.get()
    IdempotencyKey.objects.update(headers={**row.headers, "Access-Control-Allow-Origin": "*"})
    again = calling.ask(views.default)
    assert set(again.headers) == {
        "Content-Type", "Location", "Cache-Control", "Idempotent-Replayed"
    }  # fmt: skip


def test_replay_is_not_cached(ask_twice):
    assert ask_twice.headers["Cache-Control"] == "no-store"
    assert not ask_twice.cookies


@pytest.fixture
def ask_twice(transactional_db):
    calling.ask(views.default)
    return calling.ask(views.default)


def test_package_never_executes_stored_data():
    """No pickle, marshal, eval and the like anywhere in the package."""
    root = Path(django_dblock.__file__).parent
    forbidden = re.compile(
        r"^\s*(?:import|from) (?:pickle|marshal|shelve|dill|cloudpickle|yaml|jsonpickle)\b"
        r"|(?<![\w.])(?:eval|exec|__import__)\(",
        re.MULTILINE,
    )
    sources = list(root.rglob("*.py"))
    assert sources
    assert [path for path in sources if forbidden.search(path.read_text())] == []
    assert forbidden.search("import pickle\n")
    assert forbidden.search("x = eval(y)")


def test_stored_data_is_json_and_bytes():
    calling.ask(views.default)
    with connection.cursor() as cursor:
        cursor.execute("SELECT headers::text, body FROM django_dblock_idempotencykey")
        headers, body = cursor.fetchone()
    assert isinstance(json.loads(headers), dict)
    with pytest.raises(ValueError, match=r"."):
        list(pickletools.genops(bytes(body)))
