"""Template responses are rendered inside, and a callback may put another in their place."""

import pytest
from django.db import transaction
from django.http import HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from rest_framework.decorators import api_view
from rest_framework.response import Response

from django_dblock import idempotent
from tests.app.idempotent_views import add_one, client
from tests.idempotency.calling import effects, request, rows

pytestmark = pytest.mark.django_db(transaction=True)


def template(asked, *callbacks, status=201):
    text = engines["django"].from_string("value {{ value }}")
    response = TemplateResponse(asked, text, {"value": add_one()}, status=status)
    for callback in callbacks:
        response.add_post_render_callback(callback)
    return response


def sent(response):
    """What Django would send of it."""
    return response.render() if hasattr(response, "render") else response


def other(status):
    return lambda response: HttpResponse(b"other", status=status)


def test_callback_writes_commit_or_roll_back_with_the_view(ask):
    def fails(response):
        add_one()
        raise RuntimeError

    @idempotent(scope=client)
    def view(asked, how):
        return template(
            asked, *([fails] if how == "fails" else [lambda response: add_one() and None])
        )

    with pytest.raises(RuntimeError):
        ask(view, "fails", key="a")
    assert (effects(), rows()) == (0, 0)
    ask(view, key="b")
    assert ask(view, key="b").content == b"value 1"
    assert (effects(), rows()) == (2, 1)


def test_replacement_from_a_callback_is_sent_and_replayed(ask):
    view = idempotent(scope=client)(lambda asked, how: template(asked, other(202)))
    first, again = sent(ask(view)), ask(view)
    assert (
        (first.status_code, first.content) == (again.status_code, again.content) == (202, b"other")
    )
    assert effects() == 1


@pytest.mark.parametrize("status", [408, 503])
def test_temporary_error_from_a_callback_rolls_back(ask, status):
    view = idempotent(scope=client)(lambda asked, how: template(asked, other(status)))
    assert sent(ask(view)).status_code == status
    assert (effects(), rows()) == (0, 0)


def test_unstored_response_is_rendered_after_the_rollback(ask):
    """The transaction may be broken; Django renders it after that is rolled back."""
    rendered = []
    view = idempotent(scope=client)(lambda asked, how: template(asked, rendered.append, status=503))
    assert not ask(view).is_rendered
    assert rendered == []


def test_lease_mode_cannot_complete_with_a_replacement():
    """``complete()`` gives back what it was given, which would not be what was kept."""

    @idempotent(scope=client, mode="lease")
    def view(asked):
        with transaction.atomic():
            response = template(asked, other(202))
            if asked.headers.get("X-Render"):
                response = response.render()
            return asked.idempotency.complete(response)

    assert view(request()).status_code == 500
    assert (effects(), rows()) == (0, 0)
    rendered = {"X-Render": "1"}
    assert view(request(**rendered)).status_code == view(request(**rendered)).status_code == 202
    assert effects() == 1


def test_rest_framework_sends_the_replacement():
    @api_view(["POST"])
    @idempotent(scope=client)
    def view(asked):
        response = Response({"value": add_one()}, status=201)
        response.add_post_render_callback(other(202))
        return response

    first, again = sent(view(request())), view(request())
    assert (
        (first.status_code, first.content) == (again.status_code, again.content) == (202, b"other")
    )
    assert effects() == 1
