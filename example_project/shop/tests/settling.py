"""Payments that are to be settled, and the command that does it."""

import datetime as dt
from contextlib import AbstractContextManager
from io import StringIO
from typing import Any
from unittest import mock

from django.core.management import call_command
from django.test import SimpleTestCase
from django.utils import timezone

from django_dblock.testing import database_time
from shop import settlement
from shop.models import Order, Payment

TODAY = dt.date(2024, 3, 1)
YESTERDAY = dt.date(2024, 2, 29)


class OnOneDay(SimpleTestCase):
    """The test has one day, for the code and the database, even if it runs at midnight."""

    def setUp(self) -> None:
        noon = dt.datetime.combine(TODAY, dt.time(12), dt.UTC)
        self.enterContext(mock.patch.object(timezone, "now", return_value=noon))
        self.enterContext(database_time(noon))


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
