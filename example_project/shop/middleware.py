"""A header that says how long locks took, and what the demo switches off."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse

from django_dblock import bypass_versions
from django_dblock.signals import lock_acquired

_waited: ContextVar[float] = ContextVar("waited")


@receiver(lock_acquired)
def _add_wait(waited: float, **_: Any) -> None:
    _waited.set(_waited.get(0.0) + waited)


class LockTiming:
    """Tell in ``Server-Timing`` how long a request waited for locks; browsers' tools show it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        before = _waited.set(0.0)
        try:
            response = self.get_response(request)
            response["Server-Timing"] = f"lock;dur={_waited.get() * 1000:.1f}"
        finally:
            _waited.reset(before)
        return response


class WithoutVersions:
    """Serve as if products had no version: with ``SHOP_VERSIONS`` off, for the demo."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with bypass_versions():
            return self.get_response(request)
