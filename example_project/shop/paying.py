"""An order's page, and its button "Pay"."""

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from shop.forms import PaymentForm
from shop.models import Order
from shop.once import pays_once
from shop.payments import PaidAlready, PaymentFailed, PaymentRefused, pay

SECOND_CLICK = 10
"""Seconds for which the second click waits for what became of the first, to show that."""


@require_GET
def order(request: HttpRequest, reference: uuid.UUID) -> HttpResponse:
    return _order(request, reference)


@require_POST
def pay_order(request: HttpRequest, reference: uuid.UUID) -> HttpResponse:
    # Here, and not below: a stranger's guess must not leave a row behind.
    found = get_object_or_404(Order, reference=reference)
    return _pay(request, found)


# A form can't send a header: the key was made with the page, and comes in a field. All clicks on
# one page have one key. What the form asks for is the amount; it has a CSRF token besides, which
# may change between two clicks.
@pays_once(
    key=lambda request: request.POST.get("idempotency_key"),
    fingerprint=lambda request: request.POST.get("amount", ""),
    wait=SECOND_CLICK,
)
def _pay(request: HttpRequest, found: Order) -> HttpResponse:
    form = PaymentForm(request.POST)
    if not form.is_valid() or form.cleaned_data["amount"] != found.total:
        messages.error(request, "The order has another total. Look again before you pay.")
        return redirect(found)
    try:
        response = pay(request, found, lambda _: redirect(found))
    except PaidAlready:
        return redirect(found)
    except PaymentRefused as error:
        messages.error(request, str(error))
        return redirect(found)
    except PaymentFailed as error:
        # An answer that is not kept: the page has the same key, and the next click tries again.
        messages.error(request, f"{error}. You are not charged twice if you try again.")
        return _order(request, found.reference, request.POST.get("idempotency_key"), status=502)
    messages.success(request, "Paid. Thank you!")
    return response


def _order(
    request: HttpRequest, reference: uuid.UUID, key: str | None = None, status: int = 200
) -> HttpResponse:
    orders = Order.objects.prefetch_related("lines__product", "payments")
    context = {
        "order": get_object_or_404(orders, reference=reference),
        "payment_key": key or uuid.uuid4().hex,
    }
    return render(request, "shop/order.html", context, status=status)
