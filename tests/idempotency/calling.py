"""Ask a view as a client would, in a transaction of its own or in an open one."""

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
