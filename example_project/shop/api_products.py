"""Products by program: read one with its ``ETag``, and change it as long as it is the one read."""

from typing import Any

from django.forms.models import model_to_dict
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.cache import get_conditional_response
from django.views.decorators.http import require_http_methods

from django_dblock import etag, if_match, set_etag
from django_dblock.versioning.web.http import ConditionalRequest
from shop.body import Unreadable, json_body
from shop.forms import ProductForm
from shop.models import Product
from shop.problems import problem
from shop.purchase import stock_lock

FIELDS = ProductForm.Meta.fields


# Not exempt from the CSRF check, unlike purchases: a cookie says who may write.
@require_http_methods(["GET", "HEAD", "PUT", "PATCH"])
def product(request: HttpRequest, sku: str) -> HttpResponse:
    """Show a product to everybody; let staff change it, all of it (PUT) or some (PATCH)."""
    if request.method in ("PUT", "PATCH"):
        if not request.user.is_staff:
            return problem(403, "For staff", "Sign in as staff to change a product.")
        return _change(request, sku)
    found = Product.objects.filter(sku=sku).first()
    if found is None:
        return _unknown(sku)
    return get_conditional_response(request, etag=etag(found), response=_shown(found))


@if_match
def _change(request: ConditionalRequest, sku: str) -> HttpResponse:
    try:
        body = json_body(request)
    except Unreadable as error:
        return error.response
    if not isinstance(body, dict) or not body.keys() <= set(FIELDS):
        return problem(400, "Not a product", f"The body is an object with {', '.join(FIELDS)}.")
    # The lock keeps a purchase from writing over this; what it can't know is what the client saw.
    with stock_lock(sku):
        found = Product.objects.filter(sku=sku).first()
        if found is None:
            return _unknown(sku)
        request.if_match.bind(found)
        given = body if request.method == "PUT" else model_to_dict(found, FIELDS) | body
        form = ProductForm(given, instance=found)
        if not form.is_valid():
            wrong = "; ".join(f"{name}: {errors[0]}" for name, errors in form.errors.items())
            return problem(400, "Not a product", wrong)
        form.save()
    return _shown(found)


def _shown(found: Product) -> HttpResponse:
    content: dict[str, Any] = {"sku": found.sku, **model_to_dict(found, FIELDS)}
    return set_etag(JsonResponse(content), found)


def _unknown(sku: str) -> HttpResponse:
    return problem(404, "No such product", f"There is no product {sku!r}.")
