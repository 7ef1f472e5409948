"""A site whose worker is killed, at a point that is observed."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import TransactionTestCase

from django_dblock import IdempotencyKey
from shop.demo.database import address_of
from shop.demo.site import running_site
from shop.demo.stage import GUARDS
from shop.demo.workers import until
from shop.models import Order, Payment
from shop.tests.acquirers import acquirer_here, telling

JSON = "application/json"
AMOUNT = "24.68"


class Answer(NamedTuple):
    """What a program is told; status 0: the line went dead."""

    status: int
    content: bytes = b""
    replayed: bool = False
    retry_after: str | None = None
    location: str | None = None


class OneOrder(TransactionTestCase):
    """One order, to be paid."""

    def setUp(self) -> None:
        self.order = Order.objects.create(buyer="Ada", total=AMOUNT)

    def assert_paid_once(self, charges: list[dict[str, Any]]) -> None:
        """Both books have one entry, and it is the same."""
        payment = Payment.objects.get()
        assert [charge["id"] for charge in charges] == [payment.charge_id]
        assert (charges[0]["amount"], str(payment.amount)) == (2468, AMOUNT)


class RealSite(OneOrder):
    """A site of its own, with workers that can be killed, and an acquirer that can be held."""

    guarded = True

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.acquirer = cls.enterClassContext(acquirer_here())
        folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.workers = folder / "workers"
        cls.workers.mkdir()
        database = connection.settings_dict["NAME"]
        env = {
            **GUARDS,
            "SHOP_IDEMPOTENCY": str(cls.guarded),
            "DATABASE_URL": address_of(database, os.environ["DATABASE_URL"]),
            "ACQUIRER_URL": cls.acquirer.url,
            "DBLOCK_IDEMPOTENCY_LEASE": "600",
            "SHOP_WORKERS_FOLDER": str(cls.workers),
        }
        site = running_site(workers=1, env=env, log=folder / "site.log")
        cls.site = cls.enterClassContext(site)

    def setUp(self) -> None:
        super().setUp()
        self.books = self.enterContext(telling(self.acquirer))
        self.pool = self.enterContext(ThreadPoolExecutor(1))

    def pay(self, key: str = "k-1", site: str | None = None) -> Answer:
        return _pay(site or self.site, self.order.reference, key)

    def begin(self) -> "Future[Answer]":
        return self.pool.submit(self.pay)

    def kill_the_worker(self) -> None:
        # The one before it may have been killed just now, and is not taken note of yet.
        [worker] = until(self.one_worker, "there is one worker")
        os.kill(int(worker.name), signal.SIGKILL)

    def one_worker(self) -> list[Path]:
        workers = list(self.workers.iterdir())
        return workers if len(workers) == 1 else []

    def post(self, path: str, body: str, headers: dict[str, str]) -> Answer:
        """Send it on a line of its own."""
        return post(self.site, path, body, headers)

    def lease_is_over(self) -> None:
        """As if its time had passed: the worker that has it is dead."""
        assert IdempotencyKey.objects.filter(completed_at=None).update(locked_until=Now())


def _pay(site: str, reference: UUID, key: str) -> Answer:
    headers = {"Content-Type": JSON, "Idempotency-Key": key}
    body = json.dumps({"amount": AMOUNT})
    return post(site, f"/api/orders/{reference}/payments/", body, headers)


def post(site: str, path: str, body: str, headers: dict[str, str]) -> Answer:
    with closing(HTTPConnection(urlsplit(site).netloc, timeout=30)) as line:
        try:
            # The host is a part of what is asked for, and a bad line in between does not change it.
            line.request("POST", path, body, {"Host": "localhost", **headers})
            response = line.getresponse()
            content = response.read()
        except (OSError, HTTPException):
            return Answer(0)
    return Answer(
        response.status,
        content,
        response.getheader("Idempotent-Replayed") == "true",
        response.getheader("Retry-After"),
        response.getheader("Location"),
    )


@contextmanager
def no_payments() -> Iterator[None]:
    """Hold up whoever records a payment, for the time of the block."""
    with locked("shop_payment"):
        yield


@contextmanager
def locked(table: str) -> Iterator[None]:
    """Hold up whoever reads or writes the table, for the time of the block."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


def blocked() -> list[Any]:
    """Those whom :func:`locked` holds up."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'relation'")
        return cursor.fetchall()
