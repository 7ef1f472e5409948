"""Payments that are to be settled, and the command that does it."""

import datetime as dt
from contextlib import AbstractContextManager
from io import StringIO
from typing import Any
from unittest import mock

from django.core.management import call_command
from django.utils import timezone

from shop import settlement
from shop.models import Order, Payment

YESTERDAY = timezone.localdate() - dt.timedelta(days=1)


def paid(amount: str, moment: dt.datetime) -> Payment:
    order = Order.objects.create(buyer="Ada", total=amount)
    return Payment.objects.create(
        order=order, amount=amount, charge_id=str(order.reference), created_at=moment
    )


def settle(**options: object) -> str:
    said = StringIO()
    call_command("settle", stdout=said, **options)
    return said.getvalue()


def small_batches() -> AbstractContextManager[Any]:
    return mock.patch.object(settlement, "BATCH", 1)
