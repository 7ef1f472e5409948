"""The table "What we answer" as a client sees it: Django's handler, a URLconf, the middleware.

With ATOMIC_REQUESTS, which wraps around the decorator, and without.
"""

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.middleware import csrf
from django.test import Client

from django_dblock import IdempotencyKey
from tests.idempotency import stack
from tests.idempotency.calling import effects, is_replay, rows

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.idempotency.stack"),
]


@pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"], autouse=True)
def _atomic_requests(request, monkeypatch, settings):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", request.param)
    monkeypatch.setattr(stack, "FULL", [])
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]


def send(place, *, method="POST", key='"k"', body="{}", **headers):
    if key is not None:
        headers["Idempotency-Key"] = key
    client = Client(raise_request_exception=False)
    return client.generic(method, f"/{place}/", body, "application/json", headers=headers)


def code(response):
    if response.headers.get("Content-Type") != "application/problem+json":
        return None
    return response.json()["code"]


@pytest.mark.parametrize("how", ["200", "201", "204", "302", "400", "404", "409", "422"])
def test_returned_response_is_stored_with_effects(how):
    first, again = send(f"table/{how}"), send(f"table/{how}")
    assert first.status_code == int(how)
    assert is_replay(again, of=first)
    assert first.cookies["basket"].value == "17"
    assert not again.cookies
    assert "Set-Cookie" not in again.headers
    assert (effects(), rows()) == (1, 1)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("401", 401),
        ("403", 403),
        ("408", 408),
        ("423", 423),
        ("425", 425),
        ("429", 429),
        ("500", 500),
        ("503", 503),
        ("http404", 404),
        ("crash", 500),
    ],
)
def test_temporary_and_raised_errors_leave_nothing(how, status):
    for _ in range(2):
        response = send(f"table/{how}")
        assert (response.status_code, code(response)) == (status, None)
        assert "Idempotent-Replayed" not in response.headers
    assert (effects(), rows()) == (0, 0)


@pytest.mark.parametrize("how", ["stream", "large", "nothing"])
def test_unstorable_response_is_not_sent(how):
    for _ in range(2):
        response = send(f"table/{how}")
        assert (response.status_code, code(response)) == (500, "unstorable")
    assert (effects(), rows()) == (0, 0)


def test_success_after_a_swallowed_database_error_is_refused():
    for _ in range(2):
        assert send("table/swallowed-200").status_code == 500
    assert (effects(), rows()) == (0, 0)


def test_error_after_a_swallowed_database_error_is_stored():
    first = send("table/swallowed-409")
    assert is_replay(send("table/swallowed-409"), of=first)
    assert (effects(), rows()) == (0, 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_pass_through(method):
    for _ in range(2):
        assert send("table/200", method=method, key=None).status_code == 200
    assert (effects(), rows()) == (2, 0)


@pytest.mark.parametrize(
    ("place", "key", "told"),
    [
        ("table", None, "key_missing"),
        ("table", "", "key_invalid"),
        ("optional", "", "key_invalid"),
        ("table", "a" * 256, "key_invalid"),
        ("table", "a, b", "key_invalid"),
    ],
)
def test_missing_or_invalid_key_is_400(place, key, told):
    response = send(f"{place}/200", key=key)
    assert (response.status_code, code(response)) == (400, told)
    assert (effects(), rows()) == (0, 0)


def test_missing_optional_key_runs_unprotected():
    for _ in range(2):
        assert send("optional/200", key=None).status_code == 200
    assert (effects(), rows()) == (2, 0)


def test_bare_and_quoted_key_are_equal():
    first = send("table/201", key="abc")
    assert is_replay(send("table/201", key='"abc"'), of=first)
    for other in ("table/200", "table/201/?a=1&b=", "optional/201"):
        response = send(other, key="abc")
        assert (response.status_code, code(response)) == (422, "key_reused")
    assert (effects(), rows()) == (1, 1)


def test_request_past_retention_is_new():
    send("table/201")
    IdempotencyKey.objects.update(expires_at="2020-01-01T00:00:00Z")
    again = send("table/201")
    assert (again.status_code, "Idempotent-Replayed" in again.headers) == (201, False)
    assert (effects(), rows()) == (2, 1)


def test_too_many_live_keys_are_429(settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_KEYS = 1
    send("table/201", key="a")
    response = send("table/201", key="b")
    assert (response.status_code, code(response)) == (429, "too_many_keys")
    assert (effects(), rows()) == (1, 1)


# Who decides before: each may let in, and not


class Gate:
    """Something above the view, and a client that it lets in, or not."""

    def __init__(self):
        self.user = User.objects.create(username="ann", is_staff=True)

    def send(self, place, *, user=True, **headers):
        client = Client()
        if user:
            client.force_login(User.objects.get())
        return client.post(place, headers={"Idempotency-Key": "k", **headers})


class Login(Gate):
    closed = 302

    def ask(self, *, may):
        return self.send("/members/", user=may)


class Permitted(Gate):
    closed = 403

    def ask(self, *, may):
        permission = Permission.objects.get(codename="add_counter")
        self.user.user_permissions.set([permission] if may else [])
        return self.send("/permitted/")


class Throttled(Gate):
    closed = 429

    def ask(self, *, may):
        stack.FULL[:] = [] if may else [True]
        return self.send("/throttled/")


class Csrf(Gate):
    """Its check reads the form before the view, and masks its token anew in each page."""

    closed = 403

    def ask(self, *, may):
        client = Client(enforce_csrf_checks=True)
        secret = csrf._get_new_csrf_string()
        client.cookies["csrftoken"] = secret
        token = csrf._mask_cipher_secret(secret) if may else "x"
        return client.post(
            "/form/", {"a": "1", "csrfmiddlewaretoken": token}, headers={"Idempotency-Key": "k"}
        )


class ApiAuthentication(Gate):
    closed = 401

    def ask(self, *, may):
        return self.send("/api/", user=False, Authorization="Token ann" if may else "Token bob")


class ApiPermission(Gate):
    closed = 403

    def ask(self, *, may):
        User.objects.update(is_staff=may)
        return self.send("/api/", Authorization="Token ann")


class ApiThrottling(Gate):
    closed = 429

    def ask(self, *, may):
        stack.FULL[:] = [] if may else [True]
        return self.send("/api/", Authorization="Token ann")


@pytest.mark.parametrize(
    "kind",
    [Login, Permitted, Throttled, Csrf, ApiAuthentication, ApiPermission, ApiThrottling],
)
def test_outer_decorators_decide_about_each_replay(kind):
    gate = kind()
    refused = gate.ask(may=False)
    assert refused.status_code == gate.closed
    assert (effects(), rows()) == (0, 0)
    first = gate.ask(may=True)
    assert first.status_code == 201
    refused = gate.ask(may=False)
    assert refused.status_code == gate.closed
    assert "Idempotent-Replayed" not in refused.headers
    assert first.content not in refused.content
    assert is_replay(gate.ask(may=True), of=first)
    assert (effects(), rows()) == (1, 1)
