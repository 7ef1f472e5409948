"""graphene: its responses with errors are 200 or 400, and ``keep=`` tells them from a success."""

import pytest
from django.test import Client
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

pytest.importorskip("graphene_django")

import graphene
from graphene_django.views import GraphQLView

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one, client
from tests.idempotency.calling import effects
from tests.stacks import graphql

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class Query(graphene.ObjectType):
    nothing = graphene.Int()


class Mutation(graphene.ObjectType):
    pay = graphene.Int(amount=graphene.Int(required=True))

    def resolve_pay(self, info, amount):
        value = add_one()
        if amount < 0:
            raise ValueError("negative")
        return value


view = GraphQLView.as_view(schema=graphene.Schema(query=Query, mutation=Mutation))
urlpatterns = [
    path("graphql/", csrf_exempt(idempotent(scope=client, keep=graphql.without_errors)(view)))
]


def test_success_is_kept_and_errors_free_the_key():
    for _ in range(2):
        response = graphql.post(Client(), "/graphql/", -1)
        assert response.json()["errors"][0]["message"] == "negative"
        assert not graphql.replayed(response)
    assert effects() == 0
    assert not IdempotencyKey.objects.exists()
    first, again = (graphql.post(Client(), "/graphql/", 5) for _ in range(2))
    assert (again.content, graphql.replayed(again)) == (first.content, True)
    assert effects() == 1
