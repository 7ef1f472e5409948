import datetime as dt
from argparse import ArgumentParser
from os import EX_TEMPFAIL
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from django_dblock import LockLost, LockTimeout
from shop.settlement import DayNotOver, settle, settle_last_night


class Command(BaseCommand):
    help = (
        "Book the payments of a day, each once. Exit status 75: another worker runs it; what is "
        "left over can be booked later."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--date", type=dt.date.fromisoformat, help="a past day; yesterday by default"
        )
        parser.add_argument(
            "--nightly", action="store_true", help="yesterday, once a day on however many hosts"
        )
        parser.add_argument(
            "--wait", type=float, default=0, help="seconds to wait for another worker (%(default)s)"
        )

    def handle(self, *, date: dt.date | None, nightly: bool, wait: float, **_: Any) -> None:
        day = date or timezone.localdate() - dt.timedelta(days=1)
        try:
            if nightly:
                self._run_nightly()
                return
            settlement, new = settle(day, wait=wait)
        except DayNotOver as error:
            raise CommandError(f"{error} Its last payments would never be booked.") from error
        except LockTimeout as error:
            raise CommandError(
                f"{day}: another worker is settling: {error.holder}. Run it again later.",
                returncode=EX_TEMPFAIL,
            ) from error
        except LockLost as error:
            raise CommandError(
                f"{day}: the lease (token {error.token}) was lost: {error.reason}. "
                f"Run it again: it books what is left, if anything is."
            ) from error
        said = "booked" if new else "was booked before"
        self.stdout.write(
            f"{day}: {settlement.payments} payments, {settlement.amount:.2f} in all; {said}."
        )

    def _run_nightly(self) -> None:
        run = settle_last_night.run()
        self.stdout.write(f"The run of {run.period}: {run.state}, {run.result or 'no result yet'}.")
