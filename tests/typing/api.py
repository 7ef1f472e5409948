"""What users write, seen by mypy --strict; read by the type checker only, never run."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, assert_type
from uuid import UUID

from django.contrib.auth.models import User
from django.db import models
from django.http import HttpRequest, HttpResponse

from django_dblock import (
    ConflictDiff,
    FencedLock,
    FencedModel,
    FencedQuerySet,
    FieldDiff,
    HeldLock,
    HeldLocks,
    IdempotencyInProgress,
    IdempotencyKey,
    IdempotencyLeaseLost,
    IdempotentRequest,
    Lease,
    LockError,
    LockLost,
    LockTimeout,
    MissingVersion,
    NotReplicated,
    OpenTransaction,
    StaleFence,
    StaleObject,
    StaleObjects,
    VersionedManager,
    VersionedModel,
    VersionedQuerySet,
    advisory_lock,
    advisory_locks,
    arun_once,
    bypass_versions,
    conflict_diff,
    fenced_lock,
    force_release,
    idempotent,
    purge_fenced_locks,
    retry_on_conflict,
    run_once,
    try_advisory_lock,
)
from django_dblock.idempotency.context import Handle


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


class Item(VersionedModel):
    name: models.CharField[str, str] = models.CharField(max_length=80)
    objects: ClassVar[VersionedManager["Item"]] = VersionedManager()


class Plain(VersionedModel):
    """With the manager it inherits."""


class ItemQuerySet(VersionedQuerySet[Item]):
    def named(self) -> "ItemQuerySet":
        return self.filter(name="x")


@retry_on_conflict
def bare(pk: int) -> Item:
    return Item.objects.get(pk=pk)


@retry_on_conflict(attempts=3, base=0.1, cap=2, using="orders")
def configured(pk: int, *, name: str) -> str:
    return name


def versions(item: Item) -> None:
    assert_type(item.version, int)
    assert_type(item.save_cas(expected=7, update_fields=["name"], using="orders"), None)
    assert_type(item.delete_cas(expected=7), tuple[int, dict[str, int]])
    item.touch_version()
    item.expect_version(7)
    assert_type(Item.objects.get(pk=1), Item)
    assert_type(Item.objects.first(), Item | None)
    assert_type(Item.objects.filter(pk=1), VersionedQuerySet[Item])
    assert_type(Item.objects.filter(pk=1).exclude(pk=2)[0], Item)
    assert_type(Item.objects.bulk_save_cas([item], ["name"]), list[Any])
    assert_type(Item.objects.filter(pk=1).bulk_save_cas([item], ["name"]), list[Any])
    assert_type(Item.objects.update(name="x"), int)
    assert_type(Plain.objects.get(pk=1), Plain)
    Item.objects.bulk_save_cas([item], ["name"], on_conflict="ignore")  # type: ignore[arg-type]
    Item.objects.bulk_save_cas(["x"], ["name"])  # type: ignore[list-item]
    item.save_cas(expected="7")  # type: ignore[arg-type]
    item.delete_cas(expected=None)  # type: ignore[arg-type]
    assert_type(bare(1), Item)
    assert_type(configured(1, name="x"), str)
    bare("x")  # type: ignore[arg-type]
    with bypass_versions():
        item.save()


async def later(item: Item) -> None:
    await item.asave_cas(expected=7)
    assert_type(await item.adelete_cas(), tuple[int, dict[str, int]])


def conflicts(item: Item) -> None:
    try:
        item.save_cas()
    except StaleObject as error:
        assert_type(error.actual, int | None)
        assert_type(error.deleted, bool)
        diff = conflict_diff(error, original={"name": "x"}, fields=["name"])
        assert_type(diff, ConflictDiff)
        assert_type(diff.version, int | None)
        assert_type(diff.fields["name"], FieldDiff)
    except StaleObjects as error:
        assert_type(error.pks, list[Any])
    except MissingVersion as error:
        assert_type(error.adding, bool)


@idempotent
def pay(request: IdempotentRequest, pk: int) -> HttpResponse:
    assert_type(request.idempotency, Handle)
    assert_type(request.idempotency.derived_key("charge"), str)
    assert_type(request.idempotency.key, str | None)
    return HttpResponse(str(pk))


@idempotent(
    scope=lambda request: request.headers["X-Merchant"],
    key=lambda request: request.POST.get("key"),
    ttl=timedelta(days=7),
    required=False,
    wait=5,
    methods=["PUT"],
)
def configured_pay(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@idempotent(mode="lease", lease=30, on_abandoned="refuse")
async def charge(request: IdempotentRequest) -> HttpResponse:
    async with request.idempotency.step("charge") as step:
        if not step.done:
            step.result = {"id": 1}
    assert_type(request.idempotency.token, int | None)
    return await request.idempotency.acomplete(HttpResponse())


class TenantRequest(IdempotentRequest):
    """A project's own request, with what its middleware adds."""

    tenant: str


def tenant_of(request: TenantRequest) -> str:
    return request.tenant


@idempotent(scope=tenant_of, header="X-Event-Id", keep=lambda response: response.status_code < 400)
def hook(request: TenantRequest) -> HttpResponse:
    assert_type(request.tenant, str)
    assert_type(request.idempotency.protected, bool)
    return HttpResponse()


async def is_success(response: HttpResponse) -> bool:
    return response.status_code < 300


@idempotent(mode="lease", key=lambda request: request.POST["id"], header=None, keep=is_success)
async def ahook(request: IdempotentRequest) -> HttpResponse:
    return HttpResponse()


class PayView:
    @idempotent(mode="lease")
    def post(self, request: IdempotentRequest) -> HttpResponse:
        with request.idempotency.guard():
            request.idempotency.run_step("mail", lambda: None)
        return request.idempotency.complete(HttpResponse())


def requests(request: IdempotentRequest) -> None:
    assert_type(pay(request, pk=1), HttpResponse)
    assert_type(PayView().post(request), HttpResponse)
    pay(request, "1")  # type: ignore[arg-type]
    assert_type(hook(TenantRequest()), HttpResponse)
    idempotent("x")  # type: ignore[call-overload]
    idempotent(header=5)  # type: ignore[call-overload]
    idempotent(keep=True)  # type: ignore[call-overload]
    idempotent(mode="both")  # type: ignore[call-overload]
    idempotent(ttl="a day")  # type: ignore[call-overload]


def work_with(handle: Handle) -> int:
    return handle.token or 0


async def awork_with(handle: Handle) -> int:
    return handle.token or 0


async def once(key: IdempotencyKey) -> None:
    assert_type(await arun_once("invoice", key.pk, work=awork_with), Any)
    try:
        run_once(
            "invoice", 1, UUID(int=1), work=lambda: 1, ttl=timedelta(days=1), fingerprint={"a": 1}
        )
        run_once("invoice", 1, work=work_with, mode="lease", lease=30, on_abandoned="refuse")
        run_once("invoice", 1.5, work=lambda: 1)  # type: ignore[arg-type]
    except IdempotencyInProgress as error:
        assert_type(error.retry_after, int)
        assert_type(error.key, str)
    except IdempotencyLeaseLost as lost:
        assert_type(lost.token, int)


def lost(lock: Lease) -> None:
    assert_type(lock.token, int)


def leases(user: User, pk: int) -> None:
    with fenced_lock("nightly-sync", ttl=30) as lock:
        assert_type(lock, Lease)
        assert_type(lock.token, int)
        assert_type(lock.name, str)
        assert_type(lock.using, str)
        assert_type(lock.expires_at, datetime)
        assert_type(lock.remaining, float)
        assert_type(lock.waited, float)
        assert_type(lock.lost, bool)
        assert_type(lock.metadata, dict[str, Any])
        assert_type(lock.check(), None)
        with lock.guard(), lock.guard(idle_timeout=60):
            pass
        lock.renew()
        lock.renew(ttl=60)
        assert_type(lock.release(), bool)
    with fenced_lock(
        "account",
        user,
        ttl=0.5,
        timeout=None,
        heartbeat=False,
        hold_at_least=60,
        lock_delay=1.5,
        on_lost=lost,
        using="orders",
        fair=True,
        metadata={"job": 7},
    ):
        pass
    fenced_lock("a")  # type: ignore[call-arg]
    fenced_lock("a", ttl="30")  # type: ignore[arg-type]
    fenced_lock(1.5, ttl=30)  # type: ignore[arg-type]
    fenced_lock("a", ttl=30, on_lost=print)
    fenced_lock("a", ttl=30, on_lost=lambda: None)  # type: ignore[misc, arg-type]
    assert_type(force_release("account", pk, by="ann", using="orders"), bool)
    assert_type(purge_fenced_locks(idle=86_400), int)


@fenced_lock("settlement", lambda day: day, ttl=30)
def settle(day: str) -> int:
    return 1


@fenced_lock("import", ttl=30, timeout=5)
async def load(name: str) -> bytes:
    return name.encode()


async def leases_later() -> None:
    assert_type(settle("2026-01-01"), int)
    settle(1)  # type: ignore[arg-type]
    assert_type(await load("x"), bytes)
    async with fenced_lock("nightly-sync", ttl=30) as lock:
        assert_type(lock, Lease)
        await lock.arenew(ttl=60)
        assert_type(await lock.arelease(), bool)


class AccountQuerySet(FencedQuerySet):
    def overdrawn(self) -> "AccountQuerySet":
        return self.filter(balance__lt=0)


class Account(FencedModel):
    balance: models.IntegerField[int, int] = models.IntegerField(default=0)

    objects: ClassVar[Any] = AccountQuerySet.as_manager()


class Stock(VersionedModel, FencedModel):
    """Both; see the check dblock.E023."""

    class QuerySet(FencedQuerySet, VersionedQuerySet[Any]):
        """The fence first."""

    objects: ClassVar[Any] = VersionedManager.from_queryset(QuerySet)()

    class Meta:
        app_label = "shop"


def fenced_writes(lock: Lease, account: Account, stock: Stock) -> None:
    assert_type(account.fence_token, int)
    assert_type(account.save_fenced(lock, using="orders", update_fields=["balance"]), None)
    account.save_fenced()  # type: ignore[call-arg]
    account.save_fenced("lock")  # type: ignore[arg-type]
    stock.save_fenced(lock)
    rows = AccountQuerySet(Account).overdrawn().fenced(lock)
    assert_type(rows, AccountQuerySet)
    assert_type(rows.update(balance=0), int)
    assert_type(rows.delete(), tuple[int, dict[str, int]])


def rows() -> None:
    row = FencedLock.objects.get(name="nightly-sync")
    assert_type(row.name, str)
    assert_type(row.slot, int)
    assert_type(row.token, int)
    assert_type(row.expires_at, datetime)
    assert_type(row.lock_delay, timedelta)
    assert_type(row.metadata, dict[str, Any])


def losses() -> None:
    try:
        settle("2026-01-01")
    except StaleFence as error:
        assert_type(error.model, str)
        assert_type(error.pk, Any)
    except LockLost as error:
        assert_type(error.token, int)
        assert_type(error.reason, str)
    except LockTimeout as error:
        assert_type(error.holder, str)
    except (OpenTransaction, NotReplicated) as error:
        assert_type(error.using, str)
    except LockError as error:
        assert_type(error.keys, tuple[tuple[Any, ...], ...])
