"""The nightly settlement: a day's payments are booked in batches, by one worker at a time.

It may take minutes, far too long for one transaction; so it holds a lease. A lease alone keeps
nobody from *writing* who was frozen until it had expired and goes on from what it has read: its
total would overwrite the next worker's. So each booking is made in ``lock.guard()``, where the
database refuses it unless the lease is still held, and nobody gets the lease before its commit.
"""

import datetime as dt
from contextlib import AbstractContextManager
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from django_dblock import Lease, Period, fenced_lock, once_per
from shop.models import Payment, Settlement

BATCH = 100


class DayNotOver(Exception):
    """Payments of that day may still come in, and would never be booked."""


def settle(day: dt.date, *, wait: float = 0) -> tuple[Settlement, bool]:
    """Book the payments of a day, each once; return the booking, and whether anything was new.

    What an earlier run has left over, because it was killed or has lost its lease, is booked too.

    Args:
        day: in the past.
        wait: seconds to wait for another worker.

    Raises:
        DayNotOver: the day is today or later.
        LockTimeout: another worker settles, this day or another.
        LockLost: this one was frozen for so long that its lease has expired. What it had booked
            until then stands; nothing was booked since.
    """
    if day >= timezone.localdate():
        raise DayNotOver(f"{day} is not over.")
    doing = {"day": day.isoformat()}
    ttl = settings.SHOP_SETTLEMENT_TTL
    with fenced_lock("settlement", ttl=ttl, timeout=wait, metadata=doing) as lock:
        with _booking(lock):
            nothing = {"amount": 0, "payments": 0, "token": lock.token}
            settlement, new = Settlement.objects.get_or_create(date=day, defaults=nothing)
        while batch := unbooked(day):
            with _booking(lock):
                _book(settlement, batch, lock)
            new = True
            lock.check()
        return settlement, new


@once_per("day", key="nightly-settlement", mode="lease")
def settle_last_night(period: Period, _: Any) -> str:
    """Book yesterday's payments, once a day, however many hosts start it.

    The record of the run and its result are kept, so a host whose cron fires an hour late does
    nothing, and ``missed()`` lists the nights without a run. A run that fails or dies leaves the
    day due: the next host does it. mode="lease", because a settlement takes several transactions.
    """
    settlement, _ = settle(period.day - dt.timedelta(days=1))
    return f"{settlement.payments} payments, {settlement.amount:.2f}"


def unbooked(day: dt.date) -> list[Payment]:
    """Read the next payments to book."""
    return list(Payment.objects.filter(created_at__date=day, settlement=None)[:BATCH])


def _book(settlement: Settlement, batch: list[Payment], lock: Lease) -> None:
    """Mark the payments and write the new total, which nobody else writes under our lease."""
    Payment.objects.filter(pk__in=[payment.pk for payment in batch]).update(settlement=settlement)
    settlement.amount += sum(payment.amount for payment in batch)
    settlement.payments += len(batch)
    settlement.token = lock.token
    settlement.save()


def _booking(lock: Lease) -> AbstractContextManager[None]:
    """Open the transaction of one booking.

    With ``SHOP_FENCING`` off it is just that, and the lease is one like any other, which expires
    and is taken: all that the demo's two runs differ in.
    """
    return lock.guard() if settings.SHOP_FENCING else transaction.atomic()
