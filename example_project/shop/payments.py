"""Taking money: asks the acquirer over HTTP, then records what it said."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from shop.models import Order, Payment


class PaymentFailed(Exception):
    """There is no answer from the acquirer, or it was no. Whether money moved may be unknown."""


def pay(order: Order) -> Payment:
    """Charge the order's total and record the payment.

    THE CRASH WINDOW: between the acquirer's booking and our record, two ledgers disagree. If this
    process dies there, or the answer is lost on the way, the buyer is charged and the order looks
    unpaid; paying again charges twice. A transaction around both would not help: the acquirer
    takes no part in it. So would not a check for an earlier payment, which two clicks pass at once.

    Raises:
        PaymentFailed: see there. Trying again is *not* safe.
    """
    if payment := order.payments.first():
        return payment
    charge = _post(
        "/charges",
        {
            "amount": int(order.total * 100),
            "currency": settings.SHOP_CURRENCY,
            "reference": str(order.reference),
        },
    )
    return Payment.objects.create(order=order, amount=order.total, charge_id=charge["id"])


def _post(path: str, content: dict[str, Any]) -> dict[str, Any]:
    address = urlsplit(settings.ACQUIRER_URL)
    secure = address.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(address.netloc, timeout=settings.ACQUIRER_TIMEOUT)
    try:
        connection.request(
            "POST",
            address.path + path,
            json.dumps(content),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PaymentFailed(f"No answer from the acquirer: {error}") from error
    finally:
        connection.close()
    if response.status not in {200, 201}:
        raise PaymentFailed(f"The acquirer refused: {body.get('detail', response.reason)}")
    return body
