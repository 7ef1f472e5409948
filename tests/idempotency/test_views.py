"""Each kind of Django's views, with ATOMIC_REQUESTS and without, through the real handler."""

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.db.models import F
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.decorators import api_view
from rest_framework.views import APIView

from django_dblock import IdempotencyKey, idempotent
from tests.app import idempotent_matrix as matrix
from tests.app.models import Counter

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.app.idempotent_matrix"),
]

WITHOUT_TRANSACTION = ["direct-lease", "api-function-lease"]
ATOMIC = [
    "function",
    "direct",
    "on-method",
    "by-name",
    "on-dispatch",
    "api-function",
    "api-direct",
    "api-on-method",
    "api-by-name",
    "tea/brew",
]
ASYNC = [
    "async-function",
    "async-direct",
    "async-on-dispatch",
    "async-on-method",
]


@pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"])
def atomic_requests(request, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", request.param)
    return request.param


@pytest.fixture
def in_atomic_requests(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


@pytest.fixture(autouse=True)
def _user(db):
    User.objects.create(username="ann")


@pytest.fixture
def during(monkeypatch):
    found = []
    monkeypatch.setattr(matrix, "DURING", found)
    return found


def headers(key="one", **more):
    return {"Idempotency-Key": key, "Authorization": "Token ann", "X-Client": "ann", **more}


def post(place, body="{}", key="one"):
    return Client().post(f"/{place}/", body, "application/json", headers=headers(key))


def apost(place, body="{}", key="one"):
    call = async_to_sync(AsyncClient().post)
    return call(f"/{place}/", body, content_type="application/json", headers=headers(key))


def effects():
    return sum(Counter.objects.filter(name="effects").values_list("value", flat=True))


def works(post, place, during):
    in_flight = []
    during.append(lambda: in_flight.append(elsewhere(place)) if not in_flight else None)
    first = post(place)
    assert (first.status_code, first.json()) == (201, {"value": 1})
    assert "Idempotent-Replayed" not in first.headers
    [busy] = in_flight
    assert (busy.status_code, busy.json()["code"]) == (409, "in_progress")
    assert busy.headers["Content-Type"] == "application/problem+json"
    assert int(busy.headers["Retry-After"]) >= 1
    again = post(place)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    other = post(place, body="[]")
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert effects() == 1
    assert post(place, key="two").json() == {"value": 2}
    assert IdempotencyKey.objects.count() == 2


def elsewhere(place):
    """The same request in another thread, so on another connection."""
    from threading import Thread

    from django.db import connections

    found = []

    def run():
        found.append(post(place) if not place.startswith("async") else apost(place))
        connections.close_all()

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("place", [*ATOMIC, "function-lease"])
def test_sync_view_has_one_effect(place, during):
    works(post, place, during)


@pytest.mark.parametrize("place", WITHOUT_TRANSACTION)
def test_lease_mode_on_a_method_has_one_effect(place, during):
    works(post, place, during)


@pytest.mark.usefixtures("in_atomic_requests")
@pytest.mark.parametrize("place", WITHOUT_TRANSACTION)
def test_lease_mode_on_a_method_in_atomic_requests_is_refused(place):
    """Only a function can opt out by itself; a class does it in the URLconf."""
    with pytest.raises(ImproperlyConfigured, match="non_atomic_requests"):
        post(place)
    assert effects() == 0


@pytest.mark.parametrize("place", ASYNC)
def test_async_view_has_one_effect(place, during):
    works(apost, place, during)


@pytest.mark.usefixtures("in_atomic_requests")
@pytest.mark.parametrize("place", ["async-function", "async-on-dispatch"])
def test_async_function_opts_out_of_atomic_requests(place, during):
    """And a class whose dispatch is decorated: as_view() takes the mark over."""
    works(apost, place, during)


@pytest.mark.usefixtures("in_atomic_requests")
@pytest.mark.parametrize("place", ["async-direct", "async-on-method"])
def test_django_refuses_async_classes_under_atomic_requests(place):
    with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
        apost(place)
    assert effects() == 0


def test_atomic_mode_on_an_async_view_is_refused():
    async def view(request): ...

    with pytest.raises(TypeError, match=r"use @idempotent\(mode='lease'\)"):
        idempotent(view)
    with pytest.raises(TypeError, match=r"use @idempotent\(mode='lease'\)"):
        apost("async-atomic")
    assert effects() == 0


def test_class_is_refused_at_decoration():
    with pytest.raises(TypeError, match="decorate the method that needs"):

        @idempotent
        class Whole(View): ...


def test_other_methods_pass_through():
    assert Client().get("/direct/").content == b"got"
    assert Client().get("/on-dispatch/").status_code == 405
    assert not IdempotencyKey.objects.exists()


def test_other_methods_pass_through_async_views():
    async def view(request):
        assert not request.idempotency.protected
        return HttpResponse(b"got")

    protected = idempotent(scope=matrix.client, mode="lease")(view)
    assert async_to_sync(protected)(RequestFactory().get("/")).content == b"got"


def test_missing_optional_key_runs_unprotected():
    def view(request):
        assert request.idempotency.key is None
        return HttpResponse(b"run")

    async def aview(request):
        return view(request)

    request = RequestFactory().post("/")
    assert idempotent(required=False)(view)(request).content == b"run"
    protected = idempotent(required=False, mode="lease")(aview)
    assert async_to_sync(protected)(request).content == b"run"


@pytest.mark.parametrize("call", [post, apost])
@pytest.mark.parametrize(("key", "code"), [(None, "key_missing"), ("", "key_invalid")])
def test_invalid_key_is_400_in_sync_and_async(call, key, code):
    place = "function" if call is post else "async-function"
    sent = headers(key) if key is not None else {"X-Client": "ann"}
    client = Client() if call is post else AsyncClient()
    send = client.post if call is post else async_to_sync(client.post)
    response = send(f"/{place}/", "{}", content_type="application/json", headers=sent)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert effects() == 0


def test_key_can_come_from_a_form_field():
    def view(request):
        matrix.effect()
        return HttpResponse(request.idempotency.key)

    protected = idempotent(
        scope=matrix.client, key=lambda request: request.POST.get("once"), strict=True
    )(view)
    for _ in range(2):
        assert protected(RequestFactory().post("/", {"once": "bare"})).content == b"bare"
    assert protected(RequestFactory().post("/", {})).status_code == 400
    assert effects() == 1


def test_logged_in_user_is_the_scope():
    """Keys are not global across users: the same key of two of them is two requests."""
    for name in ("bob", "eve"):
        client = Client()
        client.force_login(User.objects.create(username=name))
        for replayed in (False, True):
            response = client.post("/of-user/", headers=headers())
            assert response.status_code == 201
            assert ("Idempotent-Replayed" in response.headers) is replayed
    assert effects() == 2
    assert Client().post("/of-user/", headers=headers()).status_code == 302, "no replay before it"


@pytest.mark.parametrize("place", ["of-anybody", "async-of-user"])
def test_anonymous_client_has_no_scope(place):
    with pytest.raises(ImproperlyConfigured, match="the client is anonymous"):
        (apost if place.startswith("async") else post)(place)
    assert effects() == 0


def test_scope_of_an_async_view_is_its_user():
    client = AsyncClient()
    client.force_login(User.objects.create(username="bob"))
    call = async_to_sync(client.post)
    assert call("/async-of-user/", headers=headers()).status_code == 201
    assert call("/async-of-user/", headers=headers()).headers["Idempotent-Replayed"] == "true"
    assert IdempotencyKey.objects.get().scope.startswith("user:")


def test_async_view_without_a_user_has_no_scope():
    async def view(request): ...

    protected = idempotent(mode="lease")(view)
    with pytest.raises(ImproperlyConfigured, match="the client is anonymous"):
        async_to_sync(protected)(RequestFactory().post("/", headers=headers()))


def test_async_scope_function_is_awaited():
    assert apost("async-scope").status_code == 201
    assert apost("async-scope").headers["Idempotent-Replayed"] == "true"
    assert IdempotencyKey.objects.get().scope == "scope:ann"


def test_nested_protected_view_is_one_request():
    async def inner(request):
        return await sync_to_async(matrix.answer)()

    protected = idempotent(scope=matrix.client, mode="lease")(inner)

    @idempotent(scope=matrix.client, mode="lease")
    async def outer(request):
        return await protected(request)

    request = RequestFactory().post("/", headers=headers())
    assert async_to_sync(outer)(request).status_code == 201
    assert IdempotencyKey.objects.count() == 1


def test_failed_async_view_frees_its_key():
    @idempotent(scope=matrix.client, mode="lease")
    async def fails(request):
        await sync_to_async(matrix.effect)()
        raise RuntimeError("fails")

    for tries in (1, 2):
        with pytest.raises(RuntimeError, match="fails"):
            async_to_sync(fails)(RequestFactory().post("/", headers=headers()))
        assert effects() == tries


@pytest.mark.parametrize("status", [500, 503])
def test_async_view_can_store_its_error(status):
    @idempotent(scope=matrix.client, mode="lease", store_5xx=True)
    async def fails(request):
        await sync_to_async(matrix.effect)()
        if status == 500:
            raise RuntimeError("fails")
        return HttpResponse(status=status)

    request = RequestFactory().post("/", headers=headers())
    for _ in range(2):
        assert async_to_sync(fails)(request).status_code == status
    assert effects() == 1


def overtaken():
    """Another run has the request now."""
    IdempotencyKey.objects.update(token=F("token") + 1)


def test_lost_lease_is_not_stored_as_server_error():
    """Neither as the view's own 500, with store_5xx: the request is the other run's."""

    @idempotent(scope=matrix.client, mode="lease", store_5xx=True)
    def view(request):
        overtaken()
        with transaction.atomic():
            matrix.effect()
            return request.idempotency.complete(HttpResponse())

    @idempotent(scope=matrix.client, mode="lease", store_5xx=True)
    async def aview(request):
        await sync_to_async(overtaken)()
        return await request.idempotency.acomplete(HttpResponse())

    for key, call in (("one", view), ("two", async_to_sync(aview))):
        response = call(RequestFactory().post("/", headers=headers(key)))
        assert response.status_code == 409
        assert b'"in_progress"' in response.content
    assert effects() == 0
    assert not IdempotencyKey.objects.exclude(completed_at=None).exists()


def test_response_completed_by_the_view_is_replayed():
    @idempotent(scope=matrix.client, mode="lease")
    def view(request):
        with transaction.atomic():
            matrix.effect()
            return request.idempotency.complete(HttpResponse(b"done"))

    for again in (False, True):
        response = view(RequestFactory().post("/", headers=headers()))
        assert response.content == b"done"
        assert ("Idempotent-Replayed" in response.headers) is again
    assert effects() == 1


def test_projects_fingerprint_replaces_the_body():
    def view(request):
        return matrix.answer()

    protected = idempotent(scope=matrix.client, fingerprint=lambda request: {"a": 1})(view)
    one, two = (RequestFactory().post("/", {"a": value}, headers=headers()) for value in (1, 2))
    assert protected(one).status_code == protected(two).status_code == 201
    assert effects() == 1


@pytest.mark.parametrize("method", ["post", "put", "patch"])
def test_form_of_any_method_is_fingerprinted(method):
    """Django parses those of POST only, and an unread form would be like any other."""

    def view(request):
        matrix.effect()
        return HttpResponse(request.body[:0])

    protected = idempotent(scope=matrix.client, methods=[method])(view)

    def status(text, boundary):
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{text}\r\n'
            f"--{boundary}--\r\n"
        )
        kind = f"multipart/form-data; boundary={boundary}"
        send = RequestFactory().generic
        request = send(method.upper(), "/", body.encode(), kind, headers=headers())
        _ = request.body
        return protected(request).status_code

    assert [status("x", "one"), status("x", "two"), status("y", "one")] == [200, 200, 422]
    assert effects() == 1


class TestAroundAuthorisation:
    """Replay before authentication is a trap: where it would be, nothing is decorated."""

    def test_idempotent_above_api_view_is_refused(self):
        @api_view(["POST"])
        def view(request): ...

        with pytest.raises(ImproperlyConfigured, match="below @api_view"):
            idempotent(view)

    @pytest.mark.parametrize(
        ("base", "how"),
        [
            ((APIView,), "below @api_view, or on the view's method"),
            ((LoginRequiredMixin, View), r"on the view's method, post\(\)"),
        ],
    )
    def test_idempotent_around_dispatch_is_refused(self, base, how):
        ran = []

        class Plain(*base):
            def post(self, request):
                ran.append(request)

        class Direct(Plain):
            @idempotent(scope=matrix.client)
            def dispatch(self, request, *args, **kwargs):
                return super().dispatch(request, *args, **kwargs)

        @method_decorator(idempotent(scope=matrix.client), name="dispatch")
        class ByName(Plain): ...

        request = RequestFactory().post("/", headers=headers())
        with pytest.raises(ImproperlyConfigured, match=how):
            idempotent(Plain.as_view())
        for each in (Direct, ByName):
            with pytest.raises(ImproperlyConfigured, match=how):
                each.as_view()(request)
        assert not ran

    def test_class_without_authorisation_can_be_decorated(self):
        protected = idempotent(scope=matrix.client)(matrix.Direct.as_view())
        assert protected(RequestFactory().post("/", headers=headers("x"))).status_code == 201


def test_call_without_a_request_is_a_clear_error():
    with pytest.raises(TypeError, match="without a request as its first argument"):
        matrix.function("request")


@pytest.mark.parametrize("how", ["another method", "no key that it needs"])
def test_unprotected_view_keeps_inner_protection(how):
    """Else a dispatcher in front of it would switch the inner view's protection off."""
    ran = []

    @idempotent(scope=matrix.client, methods=("PUT",))
    def inner(request):
        ran.append(request.idempotency.protected)
        return HttpResponse(status=201)

    @idempotent(scope=matrix.client, required=False, methods=("POST", "PATCH"))
    def outer(request):
        assert not request.idempotency.protected
        response = inner(request)
        assert not request.idempotency.protected
        return response

    key = {"Idempotency-Key": "k"} if how == "another method" else {}
    answers = [outer(RequestFactory().put("/", headers=key)) for _ in range(2)]
    if key:
        assert [answer.status_code for answer in answers] == [201, 201]
        assert answers[1].headers["Idempotent-Replayed"] == "true"
        assert ran == [True]
    else:
        assert [answer.status_code for answer in answers] == [400, 400]
        assert ran == []


def test_unprotected_async_view_keeps_inner_protection():
    ran = []

    @idempotent(scope=matrix.client, mode="lease", methods=("PUT",))
    async def inner(request):
        ran.append(request.idempotency.protected)
        return HttpResponse(status=201)

    @idempotent(scope=matrix.client, mode="lease")
    async def outer(request):
        response = await inner(request)
        assert not request.idempotency.protected
        return response

    for _ in range(2):
        request = RequestFactory().put("/", headers={"Idempotency-Key": "k"})
        assert async_to_sync(outer)(request).status_code == 201
    assert ran == [True]
