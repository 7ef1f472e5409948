"""What locks mean to a visitor: a page that says "busy", a header that says how long it took."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from django_dblock import LockDeadlock, LockTimeout
from django_dblock.signals import lock_acquired

RETRY_AFTER = 1

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


class BusyPage:
    """Answer 503 with Retry-After where a lock was not had in time: nothing was sold or changed."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, LockTimeout | LockDeadlock):
            return None
        headers = {"Retry-After": str(RETRY_AFTER)}
        if request.get_preferred_type(["application/problem+json", "text/html"]) == "text/html":
            page = render_to_string("shop/busy.html", request=request)
            return HttpResponse(page, status=503, headers=headers)
        return problem(503, "Busy", "Too many are buying this right now. Try again.", **headers)


def problem(status: int, title: str, detail: str, **headers: str) -> JsonResponse:
    """Return an error for programs, in the form of RFC 9457."""
    return JsonResponse(
        {"title": title, "status": status, "detail": detail},
        status=status,
        content_type="application/problem+json",
        headers=headers,
    )
