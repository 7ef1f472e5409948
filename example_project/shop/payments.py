"""Taking money: asks the acquirer over HTTP, then records what it said. Once.

THE CRASH WINDOW: between the acquirer's booking and our record, two ledgers disagree. A process
that dies there, or an answer that is lost on the way, leaves a charge that the shop knows nothing
of. A transaction around both would not help: the acquirer takes no part in it. Nor would a look
for an earlier payment, which two clicks pass at once. What helps is that asking again is safe:

- A request that is repeated with its key is run again only if the run before has died, and then
  goes on after the last step that it has recorded (``@idempotent``).
- Whoever asks for an order's charge, in whatever request, names it to the acquirer by the same key.
  So the order is charged once, also where its buyer comes back with another key: from a page that
  was opened again after a crash, or from two pages.
- The payment is recorded in one transaction with the answer to the request, and under the charge's
  number, which is unique.
"""

import http.client
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from django_dblock import LockTimeout, fenced_semaphore
from shop.models import Order, Payment


class PaymentFailed(Exception):
    """There is no answer from the acquirer. Whether money moved is unknown; ask again."""


class PaymentRefused(Exception):
    """The acquirer said no, and has booked nothing."""


class PaidAlready(Exception):
    """The order was paid by another request."""

    def __init__(self, order: Order) -> None:
        super().__init__(f"{order} is paid.")


def pay(
    request: HttpRequest, order: Order, answer: Callable[[Payment], HttpResponse]
) -> HttpResponse:
    """Charge the order's total, and record the payment together with the answer to the request.

    With ``SHOP_IDEMPOTENCY`` off it charges without a key, and records without an answer: all that
    the demo's two runs differ in.

    Args:
        answer: makes the answer; is called in the transaction.

    Raises:
        PaidAlready: another request has paid the order.
        PaymentRefused: the acquirer refused the charge.
        PaymentFailed: the acquirer did not answer; ask again.
        In all three cases nothing was recorded.
    """
    if order.payments.exists():
        raise PaidAlready(order)
    if not settings.SHOP_IDEMPOTENCY:
        charge = _charge(order, key=None)
        return answer(Payment.objects.create(order=order, amount=order.total, charge_id=charge))
    with request.idempotency.step("charge") as step:
        if not step.done:
            step.result = _charge(order, key=charge_key(order))
    with transaction.atomic():
        payment, new = Payment.objects.get_or_create(
            charge_id=step.result, defaults={"order": order, "amount": order.total}
        )
        if not new:  # a request with another key was faster
            raise PaidAlready(order)
        return request.idempotency.complete(answer(payment))


def charge_key(order: Order) -> str:
    """Return the acquirer's key for the one charge of this order.

    An order is paid once and in one sum, so it is the order that names the charge. Where one order
    may be charged several times (in parts, say), each request is a charge of its own, and the key
    is ``request.idempotency.derived_key("charge")``.
    """
    return f"order-{order.reference}"


def cents(amount: Decimal) -> int:
    """Return an amount in the currency's smallest unit, of which there are no parts."""
    whole = int(amount.scaleb(2))
    if whole != amount.scaleb(2):
        raise ValueError(f"{amount} is not a whole number of cents.")
    return whole


def _charge(order: Order, key: str | None) -> str:
    """Have the acquirer charge the order's total; return the charge's number."""
    content = {
        "amount": cents(order.total),
        "currency": settings.SHOP_CURRENCY,
        "reference": str(order.reference),
    }
    headers = {} if key is None else {"Idempotency-Key": key}
    try:
        # The acquirer allows so many calls at a time, of all our processes together. A permit is
        # a lease, not a count: a process that dies gives its permit back when the ttl is over.
        with fenced_semaphore(
            "acquirer",
            permits=settings.SHOP_ACQUIRER_CALLS,
            ttl=2 * settings.ACQUIRER_TIMEOUT,
            timeout=settings.ACQUIRER_TIMEOUT,
        ):
            status, body = _post("/charges", content, headers)
    except LockTimeout as error:
        raise PaymentFailed("The acquirer is busy") from error
    if status in {200, 201}:
        return body["id"]
    said = body.get("detail", status)
    if status >= 500:
        raise PaymentFailed(f"No answer from the acquirer: {said}")
    raise PaymentRefused(f"The acquirer refused: {said}")


def _post(
    path: str, content: dict[str, Any], headers: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    address = urlsplit(settings.ACQUIRER_URL)
    secure = address.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(address.netloc, timeout=settings.ACQUIRER_TIMEOUT)
    try:
        connection.request(
            "POST",
            address.path + path,
            json.dumps(content),
            {"Content-Type": "application/json", **headers},
        )
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PaymentFailed(f"No answer from the acquirer: {error}") from error
    finally:
        connection.close()
