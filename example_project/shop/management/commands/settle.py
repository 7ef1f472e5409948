import datetime as dt
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from shop.settlement import DayNotOver, settle


class Command(BaseCommand):
    help = "Book the payments of a day, once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--date", type=dt.date.fromisoformat, help="a past day; yesterday by default"
        )

    def handle(self, *, date: dt.date | None, **_: Any) -> None:
        day = date or timezone.localdate() - dt.timedelta(days=1)
        try:
            settlement, new = settle(day)
        except DayNotOver as error:
            raise CommandError(f"{error} Its last payments would never be booked.") from error
        said = "booked" if new else "was booked before"
        self.stdout.write(
            f"{day}: {settlement.payments} payments, {settlement.amount:.2f} in all; {said}."
        )
