"""Paying by program: an ``Idempotency-Key`` makes it safe to ask again, and to ask twice."""

import uuid

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from shop.body import Unreadable, json_body
from shop.forms import PaymentForm
from shop.models import Order, Payment
from shop.once import pays_once
from shop.payments import PaidAlready, PaymentFailed, PaymentRefused, pay
from shop.problems import problem


# Exempt for the reason that purchases are: no cookie is read.
@csrf_exempt
@require_POST
def payments(request: HttpRequest, reference: uuid.UUID) -> HttpResponse:
    """Pay an order; what is wrong whoever asks, and whenever, leaves no row behind."""
    order = Order.objects.filter(reference=reference).first()
    if order is None:
        return problem(404, "No such order", f"There is no order {reference}.")
    try:
        body = json_body(request)
    except Unreadable as error:
        return error.response
    form = PaymentForm(body if isinstance(body, dict) else {})
    if not form.is_valid():
        return problem(400, "Not a payment", f"amount: {form.errors['amount'][0]}")
    if form.cleaned_data["amount"] != order.total:
        return problem(409, "Another total", f"{order} comes to {order.total}.")
    return _pay(request, order)


@pays_once()
def _pay(request: HttpRequest, order: Order) -> HttpResponse:
    def paid(payment: Payment) -> HttpResponse:
        content = {
            "payment": payment.charge_id,
            "order": str(order.reference),
            "amount": str(payment.amount),
            "currency": settings.SHOP_CURRENCY,
        }
        address = request.build_absolute_uri(order.get_absolute_url())
        return JsonResponse(content, status=201, headers={"Location": address})

    try:
        return pay(request, order, paid)
    except PaidAlready as error:
        return problem(409, "Paid already", str(error))
    except PaymentRefused as error:
        return problem(402, "Refused", str(error))
    except PaymentFailed as error:
        # An answer that is not kept: the same request again goes on where this one has ended.
        return problem(502, "No answer", f"{error}. Ask again, with the same key.")
