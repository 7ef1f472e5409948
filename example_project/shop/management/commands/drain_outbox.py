import signal
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from shop.models import Mail
from shop.outbox import drain


class Command(BaseCommand):
    help = (
        "Send the confirmation mails that wait in the outbox. Start as many workers as you like: "
        "each owns its share of the buckets. SIGTERM ends it after the batch in hand."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", default="worker", help="for people (%(default)s)")
        parser.add_argument("--until-empty", action="store_true", help="end when all are sent")

    def handle(self, *, name: str, until_empty: bool, **_: Any) -> None:
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))

        def stop() -> bool:
            return bool(told) or (until_empty and not Mail.objects.filter(sent_at=None).exists())

        self.stdout.write(f"{name} has recorded {drain(name, stop=stop)} mails.")
