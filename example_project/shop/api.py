"""Buying by program: JSON in, JSON out, errors as ``application/problem+json``."""

from pathlib import Path

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from shop.body import Unreadable, json_body
from shop.forms import PurchaseForm
from shop.models import Product
from shop.problems import problem
from shop.purchase import SoldOut, buy

_DESCRIPTION = Path(__file__).with_name("openapi.json")


# Exempt, and rightly so: buyers are anonymous, no cookie is read, so a foreign page that makes a
# browser send this gains nothing that it could not send itself.
@csrf_exempt
@require_POST
def purchases(request: HttpRequest) -> HttpResponse:
    try:
        body = json_body(request)
    except Unreadable as error:
        return error.response
    form = PurchaseForm(body if isinstance(body, dict) else {})
    if not form.is_valid():
        wrong = "; ".join(f"{name}: {errors[0]}" for name, errors in form.errors.items())
        return problem(400, "Not a purchase", wrong)
    try:
        order = buy(**form.cleaned_data)
    except SoldOut as error:
        return problem(409, "Sold out", str(error))
    except Product.DoesNotExist as error:
        return problem(404, "No such product", str(error))
    address = request.build_absolute_uri(order.get_absolute_url())
    content = {"order": str(order.reference), "total": str(order.total)}
    return JsonResponse(content, status=201, headers={"Location": address})


@require_GET
def health(_request: HttpRequest) -> HttpResponse:
    """Say that the site works, database included."""
    connection.ensure_connection()
    return JsonResponse({"status": "ok"})


@require_GET
def description(_request: HttpRequest) -> HttpResponse:
    """Describe this API, for people's tools and for our tests."""
    return HttpResponse(_DESCRIPTION.read_bytes(), content_type="application/json")


@csrf_exempt
def nowhere(_request: HttpRequest) -> HttpResponse:
    """Answer programs in their own form where there is nothing."""
    return problem(404, "Nothing here", "The API is described at /api/openapi.json.")
