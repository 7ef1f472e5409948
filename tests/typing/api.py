"""What users write, seen by mypy --strict; read by the type checker only, never run."""

from decimal import Decimal
from typing import assert_type
from uuid import UUID

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse

from django_dblock import (
    HeldLock,
    HeldLocks,
    LockTimeout,
    advisory_lock,
    advisory_locks,
    try_advisory_lock,
)


def blocks(user: User, uuid: UUID) -> None:
    with advisory_lock("inventory", "sku-1", timeout=None, shared=True, using="orders") as held:
        assert_type(held, HeldLock)
        assert_type(held.key_id, int)
        assert_type(held.waited, float)
    with advisory_lock(1, True, b"x", uuid, Decimal(1), ("a", ("b", 2)), user):
        pass
    with advisory_locks([("account", 1), "b", 7], timeout=0) as several:
        assert_type(several, HeldLocks)
        assert_type(several.key_ids, tuple[int, ...])
    assert_type(try_advisory_lock("a", 1), bool)
    advisory_lock(1.5)  # type: ignore[arg-type]
    advisory_lock("a", timeout="1")  # type: ignore[arg-type]
    advisory_lock(None)  # type: ignore[arg-type]


@advisory_lock("inventory", lambda request, sku: sku)
def buy(request: HttpRequest, sku: str) -> HttpResponse:
    return HttpResponse(sku)


@advisory_locks(lambda one, two: [("account", one), ("account", two)])
def transfer(one: int, two: int) -> bool:
    return True


def calls(request: HttpRequest) -> None:
    assert_type(buy(request, "sku-1"), HttpResponse)
    assert_type(transfer(1, two=2), bool)
    transfer("1", 2)  # type: ignore[arg-type]


def errors() -> None:
    try:
        buy(HttpRequest(), "sku-1")
    except LockTimeout as error:
        assert_type(error.waited, float)
        assert_type(error.timeout, float | None)
