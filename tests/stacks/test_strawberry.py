"""strawberry: a response with errors is 200, and ``keep=`` tells it from a success."""

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient, Client
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

pytest.importorskip("strawberry")

import strawberry
from strawberry.django.views import AsyncGraphQLView, GraphQLView

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one, client
from tests.idempotency.calling import effects
from tests.stacks import graphql

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


@strawberry.type
class Query:
    @strawberry.field
    def nothing(self) -> int:
        return 0


@strawberry.type
class Mutation:
    @strawberry.mutation
    def pay(self, amount: int) -> int:
        value = add_one()
        if amount < 0:
            raise ValueError("negative")
        return value


@strawberry.type
class AsyncMutation:
    @strawberry.mutation
    async def pay(self, amount: int) -> int:
        value = await sync_to_async(add_one)()
        if amount < 0:
            raise ValueError("negative")
        return value


sync_view = GraphQLView.as_view(schema=strawberry.Schema(Query, Mutation))
async_view = AsyncGraphQLView.as_view(schema=strawberry.Schema(Query, AsyncMutation))
keep = graphql.without_errors

urlpatterns = [
    path("graphql/", csrf_exempt(idempotent(scope=client, keep=keep)(sync_view))),
    path("forgetful/", csrf_exempt(idempotent(scope=client)(sync_view))),
    path("async/", csrf_exempt(idempotent(scope=client, keep=keep, mode="lease")(async_view))),
]


@pytest.mark.parametrize("place", ["/graphql/", "/async/"])
def test_success_is_kept_and_errors_free_the_key(place):
    browser = AsyncClient() if place == "/async/" else Client()
    for _ in range(2):
        response = graphql.post(browser, place, -1)
        assert (response.status_code, graphql.replayed(response)) == (200, False)
        assert response.json()["errors"][0]["message"] == "negative"
    assert effects() == (2 if place == "/async/" else 0), "lease mode has no transaction"
    assert not IdempotencyKey.objects.exclude(completed_at=None).exists()
    first = graphql.post(browser, place, 5, key="other")
    again = graphql.post(browser, place, 5, key="other")
    assert (again.content, graphql.replayed(again)) == (first.content, True)


def test_without_keep_the_error_is_given_for_a_day():
    """The negative twin: half of the work is committed, and each retry is told of the error."""
    graphql.post(Client(), "/forgetful/", -1)
    assert graphql.replayed(graphql.post(Client(), "/forgetful/", -1))
    assert effects() == 1
