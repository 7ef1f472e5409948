"""A product to sell, and somebody else who holds its lock."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from django.db import connection

from django_dblock import advisory_lock
from shop.models import Product

PROBLEM = "application/problem+json"


def product(sku: str = "bell", **fields: Any) -> Product:
    return Product.objects.create(
        **{"sku": sku, "name": sku.title(), "price": Decimal("9.50"), "stock": 3, **fields}
    )


def filled(response: Any, **changes: str) -> dict[str, Any]:
    """What a browser sends back of the form on a page, after these changes."""
    context = response.context
    form = context["form"] if "form" in context else context["adminform"].form
    return {field.html_name: str(field.value()) for field in form} | changes


@contextmanager
def held_elsewhere(*key: str) -> Iterator[None]:
    """Let another connection hold a key for the time of the block."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with advisory_lock(*key):
                held.set()
                over.wait(30)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(10), "the other connection did not get the lock"
        yield
    finally:
        over.set()
        holder.join()
