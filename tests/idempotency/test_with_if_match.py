"""``@idempotent`` below If-Match: a replay has not used the precondition, and need not."""

import pytest
from django.http import JsonResponse
from django.test import RequestFactory
from rest_framework.serializers import ModelSerializer
from rest_framework.test import APIRequestFactory
from rest_framework.viewsets import ModelViewSet

from django_dblock import etag, idempotent, if_match
from django_dblock.contrib.rest_framework import VersionedViewMixin
from tests.app.idempotent_views import client
from tests.app.versioned import Product

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def item():
    return Product.objects.create(name="before")


@if_match
@idempotent(scope=client)
def rename(request, pk):
    item = Product.objects.get(pk=pk)
    request.if_match.bind(item)
    item.name = "after"
    item.save_cas()
    return JsonResponse({"version": item.version})


class ItemSerializer(ModelSerializer):
    class Meta:
        model = Product
        fields = ("name",)


class Items(VersionedViewMixin, ModelViewSet):
    authentication_classes = ()
    permission_classes = ()
    queryset = Product.objects.all()
    serializer_class = ItemSerializer

    @idempotent(scope=client, methods=("PATCH",))
    def partial_update(self, request, *args, **kwargs):
        return super().partial_update(request, *args, **kwargs)


def headers(item):
    return {"Idempotency-Key": "k", "If-Match": etag(item)}


def test_function_view_with_if_match_is_replayed(item):
    found = []
    for _ in range(2):
        request = RequestFactory().post("/x/", headers=headers(item))
        found.append(rename(request, item.pk))
    assert [response.status_code for response in found] == [200, 200]
    assert found[0].content == found[1].content
    assert found[1].headers["Idempotent-Replayed"] == "true"


def test_framework_view_with_if_match_is_replayed(item):
    view = Items.as_view({"patch": "partial_update"})
    tag = view_tag(item)
    found = []
    for _ in range(2):
        sent = {"Idempotency-Key": "k", "If-Match": tag}
        request = APIRequestFactory().patch("/x/", {"name": "after"}, format="json", headers=sent)
        found.append(view(request, pk=item.pk))
    assert [response.status_code for response in found] == [200, 200]
    assert found[0].data == found[1].data
    assert found[0].headers["ETag"] == found[1].headers["ETag"]
    assert found[1].headers["Idempotent-Replayed"] == "true"


def test_missing_precondition_is_not_stored(item):
    """The client reads the row, and repeats its request with the tag."""
    view = Items.as_view({"patch": "partial_update"})
    found = []
    for tag in ({}, {"If-Match": view_tag(item)}):
        sent = {"Idempotency-Key": "k", **tag}
        request = APIRequestFactory().patch("/x/", {"name": "after"}, format="json", headers=sent)
        found.append(view(request, pk=item.pk).status_code)
    assert found == [428, 200]


def view_tag(item):
    response = Items.as_view({"get": "retrieve"})(APIRequestFactory().get("/x/"), pk=item.pk)
    return response.headers["ETag"]
