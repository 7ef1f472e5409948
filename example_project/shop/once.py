"""A view that pays once for each key, however often it is asked."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from django_dblock import idempotent

View = Callable[..., HttpResponse]


def order_of(request: HttpRequest) -> tuple[str, Any]:
    """Return the scope of a payment's key: the order.

    Visitors are guests, so there is no user to keep apart from others. Whoever knows an order's
    reference may see the order and pay it; so that is whose keys these are. A session would not do:
    programs have none, and a browser may lose its own between a payment and its retry.
    """
    return "order", request.resolver_match.kwargs["reference"]


def pays_once(**options: Any) -> Callable[[View], View]:
    """Put ``@idempotent`` on a view that calls the acquirer; takes its further arguments.

    With ``SHOP_IDEMPOTENCY`` off the view is what it was: all that the demo's two runs differ in.
    """

    def decorate(view: View) -> View:
        once = idempotent(mode="lease", scope=order_of, **options)(view)

        @wraps(view)
        def switched(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            chosen = once if settings.SHOP_IDEMPOTENCY else view
            return chosen(request, *args, **kwargs)

        return switched

    return decorate
