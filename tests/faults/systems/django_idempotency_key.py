"""django-idempotency-key with its cache storage and its lock, both in Redis."""

import redis
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from idempotency_key.decorators import idempotency_key
from idempotency_key.middleware import ExemptIdempotencyKeyMiddleware

from tests.faults.workloads.payments import charge

ERRORS = (redis.RedisError,)


@idempotency_key
def _pay(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        return charge(request)


def pay(request: HttpRequest) -> HttpResponse:
    """Call the middleware around the view, as Django's handler does."""
    middleware = ExemptIdempotencyKeyMiddleware(
        lambda request: middleware.process_view(request, _pay, (), {}) or _pay(request)
    )
    return middleware(request)
