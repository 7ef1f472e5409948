"""Where a key comes from: ``key=``, then ``header=``; and what a client is told without one."""

import json

import pytest
from django.http import JsonResponse
from django.test import RequestFactory

from django_dblock import IdempotencyKey, idempotent
from django_dblock.exceptions import IdempotencyKeyInvalid
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter

pytestmark = pytest.mark.django_db(transaction=True)


def effects():
    return sum(Counter.objects.values_list("value", flat=True))


def event_id(request):
    """The id in a signed body."""
    return json.loads(request.body).get("id")


def made(**options):
    @idempotent(scope=client, **options)
    def view(request):
        return JsonResponse({"value": add_one()}, status=201)

    return view


def send(view, event=None, **headers):
    body = json.dumps({} if event is None else {"id": event})
    request = RequestFactory().post("/hook/", body, "application/json", headers=headers)
    return view(request)


def problem(response):
    told = json.loads(response.content)
    return response.status_code, told["code"], told["detail"]


@pytest.mark.parametrize("header", ["a", "b", "", "a, b"])
def test_explicit_key_wins_over_the_header(header):
    """Whoever repeats a signed event can't get it run again by another unsigned header."""
    view = made(key=event_id)
    assert send(view, "evt_1").status_code == 201
    again = send(view, "evt_1", **{"Idempotency-Key": header})
    assert again.headers["Idempotent-Replayed"] == "true"
    assert IdempotencyKey.objects.get().key == "evt_1"
    assert effects() == 1


def test_header_is_asked_where_the_explicit_key_is_none():
    view = made(key=event_id)
    send(view, None, **{"Idempotency-Key": "k"})
    assert IdempotencyKey.objects.get().key == "k"


def test_without_a_header_only_the_explicit_key_counts():
    view = made(key=event_id, header=None)
    status, code, detail = problem(send(view, None, **{"Idempotency-Key": "k"}))
    assert (status, code) == (400, "key_missing")
    assert "header" not in detail
    assert effects() == 0


@pytest.mark.parametrize("name", ["X-Event-Id", "x-event-id", "Idempotency-Key", "Content-Type"])
def test_header_option_names_another_header(name):
    sent = {name: "application/json" if name == "Content-Type" else "evt_1"}
    view = made(header=name)
    assert send(view, **sent).status_code == 201
    assert send(view, **sent).headers["Idempotent-Replayed"] == "true"


def test_header_option_replaces_the_default_header():
    status, code, detail = problem(send(made(header="X-Event-Id"), **{"Idempotency-Key": "k"}))
    assert (status, code) == (400, "key_missing")
    assert "X-Event-Id" in detail
    assert "Idempotency-Key" not in detail


def test_missing_key_error_names_the_header():
    detail = problem(send(made(key=event_id)))[2]
    assert "Idempotency-Key" in detail


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", "empty"),
        ('""', "empty"),
        ("   ", "empty"),
        ("a" * 256, "longer than 255"),
        ('"' + "a" * 256 + '"', "longer than 255"),
        ('"abc', "closing quote"),
        ('"a, b', "closing quote"),
        (r'"abc\"', "closing quote"),
        ("a, b", "one key"),
        ('"a", "b"', "one key"),
        ("a\x07b", "one key"),
        ("é", "one key"),
    ],
)
def test_invalid_header_says_what_is_wrong(value, told):
    status, code, detail = problem(send(made(), **{"Idempotency-Key": value}))
    assert (status, code) == (400, "key_invalid")
    assert told in detail
    assert "Idempotency-Key" in detail


def test_strict_error_asks_for_quotes():
    detail = problem(send(made(strict=True), **{"Idempotency-Key": "abc"}))[2]
    assert "quotes" in detail


def test_invalid_value_of_another_header_names_it():
    detail = problem(send(made(header="X-Event-Id"), **{"X-Event-Id": ""}))[2]
    assert "X-Event-Id" in detail


@pytest.mark.parametrize("value", ["", "a" * 256, "a b"])
def test_invalid_explicit_key_is_not_blamed_on_the_header(value):
    status, code, detail = problem(send(made(key=lambda request: value)))
    assert (status, code) == (400, "key_invalid")
    assert "Idempotency-Key" not in detail


def test_error_carries_the_reason():
    error = IdempotencyKeyInvalid("no", reason="empty")
    assert error.reason == "empty"


def test_no_key_source_is_refused():
    with pytest.raises(ValueError, match="header=None needs key="):
        idempotent(header=None)


@pytest.mark.parametrize("name", ["", "X Event", "X_Event", "x:y", "é", 7])
def test_invalid_header_name_is_refused(name):
    with pytest.raises(ValueError, match="header="):
        idempotent(header=name)


def test_optional_key_may_be_missing():
    view = made(key=event_id, required=False)
    assert send(view).status_code == 201
    assert not IdempotencyKey.objects.exists()
