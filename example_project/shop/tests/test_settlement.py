import datetime as dt
import os
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any
from unittest import mock

from django.apps import apps
from django.core.management import CommandError
from django.test import TestCase

from django_dblock import FencedLock, fenced_lock
from shop import settlement
from shop.models import Payment, Settlement
from shop.tests.settling import TODAY, YESTERDAY, OnOneDay, paid, settle, small_batches


def interrupted(*, after: int) -> AbstractContextManager[Any]:
    """Ctrl-C when so many bookings were made."""
    more = settlement.unbooked
    batches = iter(range(after))

    def read(day: dt.date) -> list[Payment]:
        if next(batches, None) is None:
            raise KeyboardInterrupt("Ctrl-C")
        return more(day)

    return mock.patch.object(settlement, "unbooked", read)


class Settling(OnOneDay, TestCase):
    def setUp(self) -> None:
        super().setUp()
        midnight = dt.datetime.combine(YESTERDAY, dt.time(), dt.UTC)
        day = dt.timedelta(days=1)
        paid("1.00", midnight - dt.timedelta(microseconds=1))
        paid("10.00", midnight)
        paid("20.50", midnight + day - dt.timedelta(microseconds=1))
        paid("100.00", midnight + day)

    def test_a_day_is_booked_from_midnight_to_midnight(self) -> None:
        assert settle() == f"{YESTERDAY}: 2 payments, 30.50 in all; booked.\n"

    def test_a_day_is_booked_once(self) -> None:
        settle(date=YESTERDAY)
        assert "was booked before" in settle(date=YESTERDAY)
        assert Settlement.objects.get().payments == 2

    def test_the_nightly_run_happens_once_a_day(self) -> None:
        first, second = settle(nightly=True), settle(nightly=True)
        assert first == f"The run of {TODAY}: ran, 2 payments, 30.50.\n"
        assert second == f"The run of {TODAY}: done, 2 payments, 30.50.\n"

    def test_a_nightly_run_beside_another_worker_asks_to_be_run_again(self) -> None:
        busy = self.assertRaisesMessage(CommandError, "another worker is settling")
        with fenced_lock("settlement", ttl=30), busy as caught:
            settle(nightly=True)
        assert caught.exception.returncode == os.EX_TEMPFAIL
        assert ": ran, 2 payments" in settle(nightly=True)

    def test_a_day_without_payments_is_booked_as_nothing(self) -> None:
        assert "0 payments, 0.00 in all" in settle(date=YESTERDAY - dt.timedelta(days=30))

    def test_a_day_that_is_not_over_is_refused(self) -> None:
        with self.assertRaisesMessage(CommandError, "is not over"):
            settle(date=TODAY)

    def test_what_an_interrupted_run_left_over_is_booked_by_the_next(self) -> None:
        """Each booking stands by itself; none is made twice."""
        stopped = self.assertRaisesMessage(KeyboardInterrupt, "Ctrl-C")
        with small_batches(), interrupted(after=1), stopped:
            settle()
        assert Settlement.objects.get().payments == 1
        assert "2 payments, 30.50 in all; booked." in settle()
        assert Payment.objects.exclude(settlement=None).count() == 2

    def test_each_booking_carries_the_token_of_its_lease(self) -> None:
        settle()
        assert Settlement.objects.get().token == FencedLock.objects.get().token

    def test_payments_of_days_booked_before_they_were_marked_are_marked_by_the_migration(self):
        Settlement.objects.create(date=YESTERDAY, amount="30.50", payments=2)
        import_module("shop.migrations.0004_mark_booked_payments").mark(apps, None)
        assert "2 payments, 30.50 in all; was booked before." in settle()
