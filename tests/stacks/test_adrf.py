"""adrf: async views of REST framework, and the user that their authentication has found."""

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import path
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, Throttled, ValidationError
from rest_framework.response import Response

pytest.importorskip("adrf")

from adrf.decorators import api_view
from adrf.views import APIView
from rest_framework.decorators import authentication_classes

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one
from tests.idempotency.calling import effects

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class Token(BaseAuthentication):
    def authenticate(self, request):
        user = User.objects.filter(username=request.headers.get("X-User")).first()
        if user is None:
            raise AuthenticationFailed
        return user, None

    def authenticate_header(self, request):
        return "Token"


class Pay(APIView):
    authentication_classes = (Token,)

    def finalize_response(self, request, response, *args, **kwargs):
        response = super().finalize_response(request, response, *args, **kwargs)
        response.data = {"data": response.data}
        return response

    @idempotent(mode="lease")
    async def post(self, request):
        value = await sync_to_async(add_one)()
        how = request.query_params.get("how")
        if how == "invalid":
            raise ValidationError({"amount": ["too small"]})
        if how == "throttled":
            raise Throttled(wait=7)
        return Response({"value": value}, status=201)


@api_view(["POST"])
@authentication_classes([Token])
@idempotent(mode="lease")
async def pay(request):
    return Response({"value": await sync_to_async(add_one)()}, status=201)


urlpatterns = [path("pay/", Pay.as_view()), path("function/", pay)]


@pytest.fixture(autouse=True)
def users(db):
    return {name: User.objects.create(username=name) for name in ("ann", "bob", "shared")}


@pytest.fixture
def ask(users):
    """A browser that is logged in as one user sends the tokens of others."""

    def ask(user, place="pay/", key="k"):
        async def send():
            client = AsyncClient()
            await client.aforce_login(users["shared"])
            headers = {"Idempotency-Key": key, "X-User": user} if key else {"X-User": user}
            return await client.post(f"/{place}", headers=headers)

        return async_to_sync(send)()

    return ask


@pytest.mark.parametrize("place", ["pay/", "function/"])
def test_each_token_is_a_client_of_its_own(ask, users, place):
    found = [ask(name, place) for name in ("ann", "bob", "ann", "bob")]
    assert [response.status_code for response in found] == [201] * 4
    assert found[0].content == found[2].content != found[1].content == found[3].content
    assert found[0].data == found[2].data
    assert effects() == 2
    scopes = set(IdempotencyKey.objects.values_list("scope", flat=True))
    assert scopes == {f"user:{users[name].pk}" for name in ("ann", "bob")}


def test_refusals_are_finalised_once_and_have_data(ask):
    assert ask("nobody").status_code == 401
    missing = ask("ann", key=None)
    assert (missing.status_code, missing.data["code"]) == (400, "key_missing")
    assert effects() == 0


def test_raised_errors(ask):
    first, again = ask("ann", "pay/?how=invalid"), ask("ann", "pay/?how=invalid")
    assert (first.status_code, again.content) == (400, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.data == first.data
    for _ in range(2):
        response = ask("bob", "pay/?how=throttled")
        assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
        assert "Idempotent-Replayed" not in response.headers
