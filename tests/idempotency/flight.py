"""A payment in flight, in both modes, and what happens while it is."""

import json

from django.db import transaction
from django.http import JsonResponse

from tests.app.models import Document

DURING = []
"""Called inside the view, after its effect; returns the status to answer with."""


def pay(request, how):
    document = Document.objects.create()
    statuses = [each() for each in DURING]
    return JsonResponse({"document": str(document.pk)}, status=[201, *statuses][-1])


def charge(request, how):
    """The same in lease mode, where the view undoes by itself what it does not complete."""
    with request.idempotency.guard():
        response = pay(request, how)
        if response.status_code < 500:
            return request.idempotency.complete(response)
        transaction.set_rollback(True)
        return response


def told(response):
    """Status, whether it is a replay, and what it says."""
    replayed = response.headers.get("Idempotent-Replayed") == "true"
    return response.status_code, replayed, json.loads(response.content)


def documents():
    return [{"document": str(pk)} for pk in Document.objects.values_list("pk", flat=True)]
