import signal
from argparse import ArgumentParser
from threading import Event
from typing import Any

from django.core.management.base import BaseCommand

from shop.stock_sync import follow


class Command(BaseCommand):
    help = (
        "Add the warehouse's deliveries to the stock. Start it on as many machines as you like: "
        "one is elected, the others stand by. SIGTERM ends it after the batch in hand."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", default="worker", help="for people (%(default)s)")

    def handle(self, *, name: str, **_: Any) -> None:
        stop = Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        counted = follow(name, stop=stop, say=self._say)
        self._say(f"{name} has counted {counted} deliveries.")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
