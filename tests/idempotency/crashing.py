"""Views whose first call stops at each step, so that its process can be ended there."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse

from django_dblock import idempotent
from tests.app.idempotent_views import client
from tests.app.models import Document
from tests.helpers.crashes import stopping
from tests.idempotency.leasing import post


def create(request: HttpRequest) -> JsonResponse:
    """The effect, and an answer that tells whose it is."""
    return JsonResponse({"document": str(Document.objects.create().pk)}, status=201)


def complete(request: HttpRequest) -> JsonResponse:
    """The same in lease mode, after a step."""
    request.idempotency.run_step("charge", lambda: "charged")
    with transaction.atomic():
        return request.idempotency.complete(create(request))


def careless(request: HttpRequest) -> JsonResponse:
    """Effect and record each in a transaction of its own: a crash can come between them."""
    with transaction.atomic():
        return create(request)


VIEWS = {
    "atomic": idempotent(scope=client)(create),
    "lease": idempotent(scope=client, mode="lease")(complete),
    "careless": idempotent(scope=client, mode="lease")(careless),
    "unprotected": create,
}


def first_call(channel, name):
    """Send the first request of a view, stopping at each statement and COMMIT."""
    with stopping(channel):
        return json.loads(post(VIEWS[name]).content)
