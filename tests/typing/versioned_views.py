"""Views with ETag and If-Match, seen by mypy --strict; read by the type checker only, never run."""

from typing import assert_type

from django.http import HttpResponse, JsonResponse

from django_dblock import VersionedModel, etag, if_match, set_etag
from django_dblock.contrib.rest_framework import VersionedViewMixin, exception_handler
from django_dblock.middleware import ConflictMiddleware
from django_dblock.versioning.web.http import ConditionalRequest


class Product(VersionedModel):
    """A row that two clients write."""


@if_match
def edit(request: ConditionalRequest, pk: int) -> HttpResponse:
    product = Product.objects.get(pk=pk)
    request.if_match.bind(product)
    assert_type(request.if_match.expected(product), int)
    assert_type(etag(product, "json"), str)
    return HttpResponse()


@if_match(required=False, variant="json")
async def edit_async(request: ConditionalRequest, pk: int) -> JsonResponse:
    product = Product(pk=pk)
    await request.if_match.ainsert(product, using="default")
    return set_etag(JsonResponse({}), product)


async def calls(request: ConditionalRequest) -> None:
    assert_type(edit(request, pk=1), HttpResponse)
    assert_type(await edit_async(request, 1), JsonResponse)
    edit(request, "1")  # type: ignore[arg-type]
    if_match(required="no")  # type: ignore[call-overload]
    etag("product")  # type: ignore[arg-type]


class View(VersionedViewMixin):
    if_match_required = False


def answers(request: ConditionalRequest, middleware: ConflictMiddleware) -> None:
    assert_type(middleware.process_exception(request, ValueError()), HttpResponse | None)
    exception_handler(ValueError(), {"request": request})
