"""A run completes at the last moment: after it was found abandoned, before it is taken over."""

import pytest
from django.db import transaction
from django.http import JsonResponse

from django_dblock import idempotent
from django_dblock.idempotency import store
from tests.app.idempotent_views import client
from tests.app.models import Document
from tests.helpers.processes import process
from tests.idempotency import calling, leasing
from tests.idempotency.calling import problem
from tests.idempotency.flight import DURING, documents

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]


@idempotent(scope=client, mode="lease")
def view(request, how):
    """Call the outside world; then effect and answer together."""
    for each in DURING:
        each()
    with transaction.atomic():
        document = Document.objects.create()
        return request.idempotency.complete(JsonResponse({"document": str(document.pk)}))


def runs(channel):
    """Run the view, and stop inside it until told to go on."""

    def stop():
        channel.send("inside")
        return channel.receive()

    DURING.append(stop)
    channel.send(calling.ask(view).content)


def test_response_stored_just_before_a_takeover_stays(monkeypatch):
    """Who has looked before is told to come again, and gets the answer then."""
    answered = []
    claim = store.claim

    def late(*args, **more):
        if not answered:
            first.send(201)
            answered.append(first.receive())
        return claim(*args, **more)

    monkeypatch.setattr(store, "claim", late)
    with process(runs) as first:
        assert first.receive() == "inside"
        leasing.expire()
        again = calling.ask(view)
    assert problem(again) == (409, "in_progress")
    replay = calling.ask(view)
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert replay.content == answered[0]
    assert len(documents()) == 1
