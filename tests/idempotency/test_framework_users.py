"""The user of a request that a framework has authenticated, and refused decorator orders.

Stand-ins for adrf and django-ninja; tests/stacks has the packages themselves.
"""

import sys
import types

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group, User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse, JsonResponse
from django.test import AsyncRequestFactory, RequestFactory
from rest_framework.authentication import BaseAuthentication
from rest_framework.response import Response
from rest_framework.views import APIView

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one

pytestmark = pytest.mark.django_db(transaction=True)


class Token(BaseAuthentication):
    def authenticate(self, request):
        return User.objects.get(username=request.headers["X-User"]), None


class AsyncAPIView(APIView):
    """What adrf does: REST framework's dispatch(), with a handler that is awaited."""

    authentication_classes = (Token,)

    async def dispatch(self, request, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        self.request = request = self.initialize_request(request, *args, **kwargs)
        self.headers = self.default_response_headers
        try:
            await sync_to_async(self.initial)(request, *args, **kwargs)
            response = await getattr(self, request.method.lower())(request, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - as adrf does
            response = self.handle_exception(error)
        return self.finalize_response(request, response, *args, **kwargs)


def test_async_framework_view_has_the_frameworks_user():
    """Behind one session that a browser shares, each token is another client."""
    ann, bob, shared = (User.objects.create(username=name) for name in ("ann", "bob", "shared"))

    class Pay(AsyncAPIView):
        @idempotent(mode="lease")
        async def post(self, request):
            return Response({"value": await sync_to_async(add_one)()}, status=201)

    def ask(name):
        headers = {"Idempotency-Key": "k", "X-User": name}
        request = AsyncRequestFactory().post("/x/", headers=headers)

        async def auser():
            return shared

        request.user, request.auser = shared, auser
        return async_to_sync(Pay().dispatch)(request)

    values = [ask(name).data["value"] for name in ("ann", "bob", "ann", "bob")]
    assert values == [1, 2, 1, 2]
    scopes = set(IdempotencyKey.objects.values_list("scope", flat=True))
    assert scopes == {f"user:{ann.pk}", f"user:{bob.pk}"}


def test_clients_of_another_model_get_no_response_of_a_user():
    """Both primary keys are 7, and both clients number their requests."""
    device = Group.objects.create(pk=7)
    device.is_authenticated = True
    clients = {"user": User.objects.create(pk=7), "device": device}

    class Credentials(BaseAuthentication):
        def authenticate(self, request):
            return clients[request.headers["X-User"]], None

    class Pay(APIView):
        authentication_classes = (Credentials,)

        @idempotent
        def post(self, request):
            return Response({"value": add_one()}, status=201)

    def ask(name):
        headers = {"Idempotency-Key": "1", "X-User": name}
        return Pay.as_view()(RequestFactory().post("/x/", headers=headers)).data["value"]

    assert [ask(name) for name in ("user", "device", "user", "device")] == [1, 2, 1, 2]


class Operation:
    """What django-ninja does: run() asks who may come in, then calls the function."""

    def __init__(self, function, auth=()):
        self.function = function
        self.auth_callbacks = list(auth)

    def run(self, request, **values):
        if not all(callback(request) for callback in self.auth_callbacks):
            return JsonResponse({"detail": "Unauthorized"}, status=401)
        return JsonResponse(self.function(request, **values))


class AsyncOperation(Operation):
    async def run(self, request, **values):
        return await sync_to_async(super().run)(request, **values)


@pytest.fixture
def ninja(monkeypatch):
    """The module in which the package's operations are found."""
    module = types.ModuleType("ninja.operation")
    module.Operation = Operation
    monkeypatch.setitem(sys.modules, "ninja.operation", module)


def token(request):
    return request.headers.get("Authorization") == "Bearer right"


def pay(request):
    return {"value": add_one()}


def ask(view, authorization="Bearer right"):
    headers = {"Idempotency-Key": "k", "Authorization": authorization}
    return view(RequestFactory().post("/x/", headers=headers))


def everybody(request):
    return "everybody"


@pytest.mark.usefixtures("ninja")
class TestNinja:
    def test_operation_with_authentication_is_refused_at_decoration(self):
        with pytest.raises(ImproperlyConfigured, match="authentication"):
            idempotent(scope=everybody)(Operation(pay, auth=[token]).run)

    def test_async_operation_with_authentication_is_refused(self):
        with pytest.raises(ImproperlyConfigured, match="authentication"):
            idempotent(scope=everybody, mode="lease")(AsyncOperation(pay, auth=[token]).run)

    def test_later_authentication_is_refused_at_the_request(self):
        """The package hands down the authentication of its API when it makes the URLs."""
        operation = Operation(pay)
        view = idempotent(scope=everybody)(operation.run)
        operation.auth_callbacks = [token]
        for authorization in ("Bearer right", "Bearer wrong"):
            with pytest.raises(ImproperlyConfigured, match="authentication"):
                ask(view, authorization)
        assert not IdempotencyKey.objects.exists()

    def test_decorator_in_between_does_not_hide_authentication(self):
        from django.views.decorators.cache import never_cache

        operation = Operation(pay, auth=[token])
        with pytest.raises(ImproperlyConfigured, match="authentication"):
            idempotent(scope=everybody)(never_cache(operation.run))

    def test_operation_without_authentication_is_protected(self):
        view = idempotent(scope=everybody)(Operation(pay).run)
        assert ask(view).content == ask(view).content == b'{"value": 1}'


def test_401_of_a_view_below_is_not_stored():
    """Whatever stands below and can't be seen: a refusal is not kept for who has a right token."""

    @idempotent(scope=everybody)
    def view(request):
        return HttpResponse(status=200 if token(request) else 401)

    assert ask(view, "Bearer wrong").status_code == 401
    assert ask(view).status_code == 200
