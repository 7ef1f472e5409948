"""REST framework: each response is finalised once, and is a response of the framework."""

import json

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one
from tests.app.models import Counter

pytestmark = pytest.mark.django_db(transaction=True)


class Anybody(BaseAuthentication):
    def authenticate(self, request):
        from django.contrib.auth.models import User

        return User(pk=7), None


class Envelope(APIView):
    """A project's base class that wraps what each view says."""

    authentication_classes = (Anybody,)
    calls = 0

    def finalize_response(self, request, response, *args, **kwargs):
        type(self).calls += 1
        response = super().finalize_response(request, response, *args, **kwargs)
        response.data = {"ok": response.status_code < 400, "data": response.data}
        response.headers["X-Finalised"] = "yes"
        return response


def envelope(make, **options):
    class View(Envelope):
        @idempotent(**options)
        def post(self, request):
            add_one()
            return make()

    return View


def created():
    return Response({"id": 1}, status=201)


def invalid():
    raise ValidationError({"amount": ["too small"]})


def send(view, *, key="k", body=b"{}", finalised=1, **headers):
    if key is not None:
        headers["Idempotency-Key"] = key
    request = APIRequestFactory().generic(
        "POST", "/x/", body, content_type="application/json", headers=headers
    )
    before = view.calls
    response = view.as_view()(request)
    assert view.calls - before == finalised, "each response is finalised once"
    assert isinstance(response, Response)
    assert response.is_rendered
    assert response.headers["X-Finalised"] == "yes"
    return response


@pytest.mark.parametrize("options", [{}, {"mode": "lease"}], ids=["atomic", "lease"])
@pytest.mark.parametrize(("make", "status"), [(created, 201), (invalid, 400)])
def test_replay_equals_the_first_response(make, status, options):
    view = envelope(make, **options)
    first, again = send(view), send(view)
    assert (first.status_code, again.status_code) == (status, status)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.data == json.loads(first.content)
    assert first.data["ok"] is (status < 400)
    assert again.content == first.content
    assert again.data == first.data
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.headers["Vary"] == first.headers["Vary"]
    assert again.headers["Allow"] == first.headers["Allow"]


def test_refusals_have_data():
    view = envelope(created)
    send(view)
    cases = {
        "key_missing": send(view, key=None),
        "key_invalid": send(view, key=""),
        "key_reused": send(view, body=b"[]"),
    }
    for code, response in cases.items():
        assert response.data["code"] == code
        assert response.data == json.loads(response.content)
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["Cache-Control"] == "no-store"
    assert [response.status_code for response in cases.values()] == [400, 400, 422]


def test_request_in_flight_is_a_framework_response():
    def nested():
        twin.append(send(view))
        return created()

    twin = []
    view = envelope(nested, mode="lease")
    send(view, finalised=2)
    assert twin[0].status_code == 409
    assert twin[0].data["code"] == "in_progress"
    assert int(twin[0].headers["Retry-After"]) > 0


def test_unstorable_response_is_an_error(settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_BODY = 3
    response = send(envelope(created), finalised=2)  # the view's own one, and the refusal
    assert (response.status_code, response.data["code"]) == (500, "unstorable")


def test_refusal_for_a_browser_is_a_page_with_data():
    response = send(envelope(created), key=None, Accept="text/html")
    assert response.headers["Content-Type"].startswith("text/html")
    assert response.data["code"] == "key_missing"
    assert b"<!DOCTYPE html>" in response.content


def test_replay_that_is_not_json_has_its_text():
    class View(APIView):
        authentication_classes = (Anybody,)

        @idempotent
        def post(self, request):
            return HttpResponse("grüß", content_type="text/plain; charset=latin-1")

    request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
    first = View.as_view()(request)
    request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
    again = View.as_view()(request)
    assert isinstance(again, Response)
    assert again.content == first.content == "grüß".encode("latin-1")
    assert again.data == "grüß"


@pytest.mark.parametrize(
    ("body", "content_type", "data"),
    [
        (b"", None, None),
        (b"\xff", "image/png", b"\xff"),
        (b"{", "application/json", "{"),
        (b"\xff", "text/plain; charset=unknown", b"\xff"),
        (b'{"a": 1}', "application/vnd.api+json", {"a": 1}),
    ],
)
def test_data_of_a_replay_follows_its_content_type(body, content_type, data):
    class View(APIView):
        authentication_classes = (Anybody,)

        @idempotent
        def post(self, request):
            response = HttpResponse(body)
            del response.headers["Content-Type"]
            if content_type:
                response.headers["Content-Type"] = content_type
            return response

    for again in (False, True):
        request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
        response = View.as_view()(request)
        assert response.content == body
        assert response.headers.get("Content-Type") == content_type
        if again:
            assert response.data == data


def test_finaliser_with_a_new_response_wraps_a_replay_once():
    class View(Envelope):
        def finalize_response(self, request, response, *args, **kwargs):
            wrapped = Response({"data": response.data}, status=response.status_code)
            return APIView.finalize_response(self, request, wrapped, *args, **kwargs)

        @idempotent
        def post(self, request):
            return created()

    found = []
    for _ in range(2):
        request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
        found.append(View.as_view()(request).render())
    assert found[0].content == found[1].content == b'{"data":{"id":1}}'
    assert found[1].headers["Idempotent-Replayed"] == "true"


def test_response_exchanged_by_a_decorator_is_finalised():
    def exchange(method):
        def exchanged(self, request):
            method(self, request)
            return Response({"other": 1})

        return exchanged

    class View(Envelope):
        post = exchange(envelope(created).post)

    request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
    response = View.as_view()(request).render()
    assert response.data == {"ok": True, "data": {"other": 1}}


def test_error_of_the_finaliser_is_raised_and_not_stored():
    class View(Envelope):
        def finalize_response(self, request, response, *args, **kwargs):
            if response.status_code == 201:
                raise LookupError
            return super().finalize_response(request, response, *args, **kwargs)

        @idempotent
        def post(self, request):
            add_one()
            return created()

    request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
    with pytest.raises(LookupError):
        View.as_view()(request)
    assert not Counter.objects.exists()
    assert not IdempotencyKey.objects.exists()


def test_keep_sees_the_rendered_response_with_data():
    seen = []

    def keep(response):
        seen.append((response.data, response.content))
        return response.data["ok"]

    view = envelope(created, keep=keep)
    send(view)
    assert seen == [({"ok": True, "data": {"id": 1}}, b'{"ok":true,"data":{"id":1}}')]


class Down(APIException):
    status_code = 503
    default_detail = "The gateway is down."


def of_the_project(error, context):
    """An exception handler that has a response to each error."""
    status = 400 if isinstance(error, LookupError) else 500
    return Response({"error": type(error).__name__}, status=status)


def raising(error, handler=None):
    class View(Envelope):
        @idempotent(store_5xx=True)
        def post(self, request):
            add_one()
            raise error

        def get_exception_handler(self):
            return handler or super().get_exception_handler()

    return View


@pytest.mark.parametrize(
    ("error", "handler", "status", "data"),
    [
        (Down(), None, 503, {"detail": "The gateway is down."}),
        (ArithmeticError(), of_the_project, 500, {"error": "ArithmeticError"}),
    ],
)
def test_store_5xx_keeps_the_handlers_response(error, handler, status, data):
    view = raising(error, handler)
    first, again = send(view), send(view)
    assert (first.status_code, first.data) == (status, {"ok": False, "data": data})
    assert (again.status_code, again.content) == (status, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert not Counter.objects.exists()


def test_store_5xx_leaves_client_errors_to_the_handler():
    view = raising(LookupError(), of_the_project)
    for _ in range(2):
        request = APIRequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
        response = view.as_view()(request)
        assert (response.status_code, response.data["data"]) == (400, {"error": "LookupError"})
    assert not Counter.objects.exists()
    assert not IdempotencyKey.objects.exists()
