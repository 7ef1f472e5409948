"""The cost of @idempotent: messages to the server beyond the view's own in a transaction."""

import pytest
from django.db import transaction
from django.http import HttpResponse

from django_dblock import idempotent
from tests.app import idempotent_views as views
from tests.idempotency.calling import request

pytestmark = pytest.mark.django_db(transaction=True)


def nothing(request, how):
    return HttpResponse(status=201)


def plain(view):
    """Return the view as it is in a transaction, without us."""

    def in_transaction(request, how):
        with transaction.atomic():
            return view(request, how)

    return in_transaction


def count(statements, view, *, joined, times=1):
    asked = [request() for _ in range(times)]
    for one in asked[:-1]:
        view(one, "201")
    with statements() as sent:
        if joined:
            with transaction.atomic():
                view(asked[-1], "201")
        else:
            view(asked[-1], "201")
    return len(sent)


@pytest.mark.parametrize("joined", [False, True], ids=["own", "joined"])
@pytest.mark.parametrize("view", [nothing, views.answers])
def test_first_call_adds_two_messages_and_replay_is_two(statements, view, joined):
    views.add_one()
    without = count(statements, view if joined else plain(view), joined=joined)
    own_bounds = count(statements, lambda request, how: None, joined=joined)
    protected = idempotent(scope=views.client)(view)
    first = count(statements, protected, joined=joined)
    again = count(statements, protected, joined=joined)
    assert first - without <= 3
    assert again - own_bounds <= 2 + (0 if joined else 2)  # BEGIN and COMMIT of our own
