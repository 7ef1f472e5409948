import datetime as dt
from io import StringIO

from django.core.management import CommandError, call_command
from django.test import TestCase
from django.utils import timezone

from shop.models import Order, Payment, Settlement

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


class Settling(TestCase):
    def setUp(self) -> None:
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

    def test_a_day_without_payments_is_booked_as_nothing(self) -> None:
        assert "0 payments, 0.00 in all" in settle(date=YESTERDAY - dt.timedelta(days=30))

    def test_a_day_that_is_not_over_is_refused(self) -> None:
        with self.assertRaisesMessage(CommandError, "is not over"):
            settle(date=timezone.localdate())
