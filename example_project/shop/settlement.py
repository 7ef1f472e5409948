"""The nightly settlement: a day's payments become one booking."""

import datetime as dt

from django.db import transaction
from django.db.models import Count, Sum
from django.utils import timezone

from shop.models import Payment, Settlement


class DayNotOver(Exception):
    """Payments of that day may still come in, and would never be booked."""


def settle(day: dt.date) -> tuple[Settlement, bool]:
    """Book the payments of a day, once; return the booking, and whether it is new.

    Raises:
        DayNotOver: the day is today or later.
    """
    if day >= timezone.localdate():
        raise DayNotOver(f"{day} is not over.")
    with transaction.atomic():
        sums = Payment.objects.filter(created_at__date=day).aggregate(
            amount=Sum("amount", default=0), payments=Count("pk")
        )
        # The date is unique: of two runs at once, one books and the other gets its booking.
        return Settlement.objects.get_or_create(date=day, defaults=sums)
