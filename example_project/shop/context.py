"""What every page shows."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest

from shop.models import BasketLine


def shop(request: HttpRequest) -> dict[str, Any]:
    # Lazy, so that a page that does not show the number does not ask the database for it.
    return {
        "basket_count": lambda: BasketLine.count(request.session.get("basket")),
        "currency": settings.SHOP_CURRENCY,
        "locking": settings.SHOP_LOCKING,
        "versions": settings.SHOP_VERSIONS,
        "idempotency": settings.SHOP_IDEMPOTENCY,
    }
