"""The trap of keys without users: another user's stored response and cookie are served.

The twin is django-idempotency-key itself, set up as its documentation says, and asked the same.
"""

import importlib.util
import os

import pytest
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import JsonResponse
from django.test import Client
from django.urls import path

from django_dblock import IdempotencyKey, idempotent

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__), pytest.mark.loss]


def account(request):
    """What nobody else may read, in the body, in a header and in a cookie."""
    secret = f"secret-of-{request.user.get_username()}"
    response = JsonResponse({"iban": secret}, status=201, headers={"Location": f"/{secret}/"})
    response.set_cookie("basket", secret)
    return response


urlpatterns = [
    path("theirs/", login_required(account)),
    path("ours/", login_required(idempotent(account))),
]


@pytest.fixture
def theirs(settings):
    """Their middleware, with the store that a site of several processes needs."""
    if importlib.util.find_spec("idempotency_key") is None:
        missing = pytest.fail if os.environ.get("DBLOCK_TEST_EVERYTHING") else pytest.skip
        missing("django-idempotency-key is not installed (the dependency group 'test' has it)")
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE, "idempotency_key.middleware.IdempotencyKeyMiddleware"
    ]  # fmt: skip
    settings.IDEMPOTENCY_KEY = {
        "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage", "CACHE_NAME": "default"}
    }
    cache.clear()
    yield "/theirs/"
    cache.clear()


def ask(address, name):
    """One request with the key that all use; without a name, as a stranger."""
    client = Client()
    if name:
        client.force_login(User.objects.get_or_create(username=name)[0])
    return client.post(
        address, {"amount": 1}, "application/json", headers={"Idempotency-Key": '"k"'}
    )


def told(response):
    """All that goes over the line."""
    return response.serialize() + response.cookies.output().encode()


def test_trap_response_of_another_user_is_replayed():
    """Bert gets an answer of his own, a stranger none, and a repeat of Anna's sets no cookie."""
    anna, bert, stranger = (ask("/ours/", name) for name in ("anna", "bert", None))
    assert b"secret-of-anna" in told(anna)
    assert (bert.status_code, bert.cookies["basket"].value) == (201, "secret-of-bert")
    assert stranger.status_code == 302
    assert b"anna" not in told(bert) + told(stranger)
    again = ask("/ours/", "anna")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.content == anna.content
    assert not again.cookies
    assert IdempotencyKey.objects.count() == 2


@pytest.mark.parametrize("name", ["bert", None])
def test_twin_response_of_another_user_is_replayed(theirs, name):
    """Also to a stranger, though the view is behind ``login_required``."""
    anna, other = ask(theirs, "anna"), ask(theirs, name)
    assert anna.status_code == 201
    assert (other.status_code, other.content) == (409, anna.content)
    assert other.headers["Location"] == "/secret-of-anna/"
    assert other.cookies["basket"].value == "secret-of-anna"
