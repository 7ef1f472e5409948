"""django-ninja: @idempotent directly on the function, below the authentication of its API."""

import json

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client
from django.urls import path

pytest.importorskip("ninja")

from ninja import NinjaAPI, Schema
from ninja.decorators import decorate_view
from ninja.errors import HttpError
from ninja.security import HttpBearer

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one
from tests.idempotency.calling import effects

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class Bearer(HttpBearer):
    def authenticate(self, request, token):
        return token if token in ("ann", "bob") else None


class Payment(Schema):
    amount: int


def whose(request):
    return request.auth


def everybody(request):
    return "everybody"


api = NinjaAPI(auth=Bearer(), urls_namespace="right")


@api.post("/pay")
@idempotent(scope=whose)
def pay(request, payment: Payment):
    if payment.amount < 0:
        raise HttpError(422, "negative")
    return api.create_response(request, {"value": add_one()}, status=201)


@api.post("/plain")
@idempotent(scope=whose)
def plain(request):
    return {"value": add_one()}


@api.post("/apay")
@idempotent(scope=whose, mode="lease")
async def apay(request, payment: Payment):
    return api.create_response(request, {"value": await sync_to_async(add_one)()}, status=201)


public = NinjaAPI(urls_namespace="public")


@public.post("/pay")
@decorate_view(idempotent(scope=everybody))
def pay_public(request):
    return {"value": add_one()}


urlpatterns = [
    path("api/", api.urls),
    path("public/", public.urls),
]


def post(place, user="ann", amount=1, client=None):
    headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {user}"}
    send = (client or Client()).post
    body = json.dumps({"amount": amount})
    response = send(f"/{place}", body, content_type="application/json", headers=headers)
    return async_to_sync(_wait)(response) if client else response


async def _wait(response):
    return await response


def replayed(response):
    return response.headers.get("Idempotent-Replayed") == "true"


@pytest.mark.parametrize("place", ["api/pay", "api/apay"])
def test_below_the_authentication(place):
    client = AsyncClient() if place == "api/apay" else None
    first, again = post(place, client=client), post(place, client=client)
    assert (first.status_code, again.status_code) == (201, 201)
    assert (again.content, replayed(again)) == (first.content, True)
    assert post(place, "nobody", client=client).status_code == 401
    assert post(place, "bob", client=client).json() == {"value": 2}
    assert post(place, amount=2, client=client).status_code == 422
    assert effects() == 2


def test_error_of_the_package_rolls_back_and_frees_the_key():
    for _ in range(2):
        response = post("api/pay", amount=-1)
        assert (response.status_code, replayed(response)) == (422, False)
    assert not IdempotencyKey.objects.exists()


def test_result_that_is_no_response_is_told(caplog):
    assert post("api/plain").status_code == 500
    assert "not a response" in caplog.text
    assert effects() == 0


def pay_around(request):
    return {"value": add_one()}


async def apay_around(request):
    return {"value": await sync_to_async(add_one)()}


@pytest.mark.parametrize("function", [pay_around, apay_around])
def test_around_the_authentication_of_the_operation_is_refused(function):
    """Told when the module is imported."""
    mode = "lease" if function is apay_around else "atomic"
    once = decorate_view(idempotent(scope=everybody, mode=mode))
    made = NinjaAPI(urls_namespace=f"refused-{mode}")
    with pytest.raises(ImproperlyConfigured, match="directly on the function"):
        made.post("/pay", auth=Bearer())(once(function))


def test_around_the_authentication_of_the_api_is_refused():
    """Told when the operation or its URL is made, before any request."""
    made = NinjaAPI(auth=Bearer(), urls_namespace="refused")
    once = decorate_view(idempotent(scope=everybody))
    with pytest.raises(ImproperlyConfigured, match="directly on the function"):
        path("api/", (made.post("/pay")(once(pay_around)), made.urls))


def test_around_an_operation_that_authenticates_nobody():
    first, again = post("public/pay"), post("public/pay")
    assert (first.content, replayed(again)) == (again.content, True)
