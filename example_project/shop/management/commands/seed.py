from typing import Any

from django.core.management.base import BaseCommand

from shop.catalogue import seed


class Command(BaseCommand):
    help = "Put the shop's products on the shelves. Run again, it adds only what is missing."

    def handle(self, **_: Any) -> None:
        self.stdout.write(f"{seed()} products added.")
