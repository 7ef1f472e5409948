"""Ask a view as a client would, in a transaction of its own or in an open one."""

import json

from django.db import transaction
from django.test import RequestFactory

from django_dblock import IdempotencyKey
from tests.app.models import Counter


def request(how="201", key='"k"', body=b"{}", method="POST", query="", **headers):
    if key is not None:
        headers["Idempotency-Key"] = key
    return RequestFactory().generic(
        method, f"/x/{how}/{query}", body, content_type="application/json", headers=headers
    )


def ask(view, how="201", **more):
    """One request; the transaction, if any, is the decorator's."""
    return view(request(how, **more), how)


def ask_joined(view, how="201", **more):
    """One request inside a transaction, as ``ATOMIC_REQUESTS`` opens one around the view."""
    with transaction.atomic():
        return view(request(how, **more), how)


def effects():
    """How often the view's effects were committed."""
    return sum(Counter.objects.values_list("value", flat=True))


def rows():
    """How many keys are known."""
    return IdempotencyKey.objects.count()


def problem(response):
    """Its status and code; a problem is JSON, and no cache keeps it."""
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Idempotent-Replayed" not in response.headers
    told = json.loads(response.content)
    assert set(told) == {"type", "title", "status", "detail", "code"}
    assert told["status"] == response.status_code
    return response.status_code, told["code"]


def is_replay(response, of):
    return (
        response.headers.get("Idempotent-Replayed") == "true"
        and (response.status_code, response.content) == (of.status_code, of.content)
        and "Idempotent-Replayed" not in of.headers
    )
