"""What the tests of lease mode do to a view and to its row."""

from collections.abc import Callable
from typing import Any

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter


def leased(work: Callable[[HttpRequest], Any], **options: Any) -> Callable[[HttpRequest], Any]:
    """A view in lease mode that does ``work``."""

    def view(request: HttpRequest) -> Any:
        return work(request)

    return idempotent(**{"scope": client, "mode": "lease", **options})(view)


def request(key: str | None = '"key"', body: bytes = b"{}", method: str = "POST") -> HttpRequest:
    headers = {} if key is None else {"Idempotency-Key": key}
    return RequestFactory().generic(method, "/x/", body, "application/json", headers=headers)


def post(view: Callable[[HttpRequest], Any], **more: Any) -> HttpResponse:
    return view(request(**more))


def effect(request: HttpRequest | None = None) -> HttpResponse:
    """One effect, which the answer counts."""
    return JsonResponse({"value": add_one()}, status=201)


def effects() -> int:
    return sum(Counter.objects.values_list("value", flat=True))


def update(assignments: str) -> None:
    """Change the row behind everybody's back."""
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE django_dblock_idempotencykey SET {assignments}")


def expire() -> None:
    """The lease has run out; nobody slept for it."""
    update("locked_until = clock_timestamp() - interval '1 second'")


def end_retention() -> None:
    update(
        "expires_at = clock_timestamp() - interval '1 second', locked_until ="
        " locked_until - interval '1 day'"
    )


def row() -> IdempotencyKey:
    return IdempotencyKey.objects.get()


def die(step: str | None = None, **options: Any) -> None:
    """A run that is dead: it has claimed, perhaps recorded a step, and its lease is over."""

    def work(request: HttpRequest) -> HttpResponse:
        if step is not None:
            request.idempotency.run_step(step, lambda: {"by": "the dead"})
        raise Died

    try:
        with unable_to_give_up():
            post(leased(work, **options))
    except Died:
        expire()


class Died(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


class unable_to_give_up:  # noqa: N801 - read as a statement
    """What a process that was killed can't do any more."""

    def __enter__(self) -> None:
        from django_dblock.idempotency.lease_mode import Run

        self._original, Run.give_up = Run.give_up, lambda self, lease: None

    def __exit__(self, *details: object) -> None:
        from django_dblock.idempotency.lease_mode import Run

        Run.give_up = self._original
