"""Make everything happen once, for real, that a signal tells about."""

import threading
from contextlib import suppress

import pytest
from django.db import connection, transaction

from django_dblock import (
    IdempotencyKeyReused,
    LockLost,
    LockTimeout,
    StaleFence,
    StaleObject,
    StaleObjects,
    UnsafeIsolation,
    advisory_lock,
    fenced_lock,
    force_release,
    retry_on_conflict,
    run_once,
)
from django_dblock.testing import hold_lock
from tests.app.fenced import Account, Stock
from tests.helpers import observe
from tests.helpers.locks import deadlock


def advisory(sku="sku-1"):
    """Taken once and committed, once and rolled back."""
    with advisory_lock("inventory", sku):
        pass
    with suppress(ZeroDivisionError), advisory_lock("inventory", sku):
        raise ZeroDivisionError


def waited():
    """Had after a wait."""
    with hold_lock("inventory", "sku-2") as busy:
        releasing = threading.Thread(target=lambda: (busy.until_waited_for(), busy.release()))
        releasing.start()
        with advisory_lock("inventory", "sku-2"):
            pass
        releasing.join(60)


def timed_out():
    with hold_lock("inventory", "sku-3"):
        with pytest.raises(LockTimeout), advisory_lock("inventory", "sku-3", timeout=0.01):
            pass


def refused():
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(UnsafeIsolation), advisory_lock("inventory", "sku-4"):
            pass
        transaction.set_rollback(True)


def leased():
    """Given back; taken away; expired."""
    with fenced_lock("nightly-sync", ttl=30):
        pass
    with pytest.raises(LockLost), fenced_lock("nightly-sync", ttl=30):
        force_release("nightly-sync")
    with pytest.raises(LockLost), fenced_lock("nightly-sync", ttl=0.05, heartbeat=False) as lock:
        observe.until(lambda: lock.lost, "it expires")


def stale():
    """A fenced write and a conditional one are refused; the latter is tried again."""
    account = Account.objects.create(name="a")
    with pytest.raises(LockLost), fenced_lock("nightly-sync", ttl=30) as lock:
        force_release("nightly-sync")
        with pytest.raises(StaleFence):
            account.save_fenced(lock)
    stock = Stock.objects.create()
    Stock.objects.update(number=1)
    with pytest.raises(StaleObject):
        stock.save_cas()
    runs = []

    @retry_on_conflict(base=0)
    def again():
        runs.append(1)
        if len(runs) == 1:
            raise StaleObjects(model="app.Stock", pks=[1], using="default")

    again()


def requested():
    """Run, replayed, refused; and taken over."""
    for _ in range(2):
        run_once("a", work=lambda: 1)
    with pytest.raises(IdempotencyKeyReused):
        run_once("a", work=lambda: 1, fingerprint="b")

    tokens = []

    def work(run):
        run.run_step("one", lambda: 1)
        tokens.append(run.token)
        if len(tokens) == 1:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run_once("b", work=work, mode="lease")
    run_once("b", work=work, mode="lease")


def everything(rival, observer):
    advisory()
    waited()
    timed_out()
    deadlock(rival, observer)
    refused()
    leased()
    stale()
    requested()
