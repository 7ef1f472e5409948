"""Two clicks at once, lost answers, killed workers: the order is charged once.

Each kind has a twin with ``SHOP_IDEMPOTENCY`` off, which would be worth nothing if it charged once.
Nothing here is ordered by sleeping: the acquirer tells when it has booked, and holds its answer.
"""

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import Client, TransactionTestCase, override_settings

from django_dblock import IdempotencyKey
from shop.demo.database import address_of
from shop.demo.site import running_proxy, running_site
from shop.demo.stage import GUARDS
from shop.demo.workers import until
from shop.models import Order, Payment
from shop.tests.acquirers import AsksAcquirer, acquirer_here, telling

JSON = "application/json"
AMOUNT = "24.68"


class Answer(NamedTuple):
    """What a program is told; status 0: the line went dead."""

    status: int
    content: bytes = b""
    replayed: bool = False
    retry_after: str | None = None


class OneOrder(TransactionTestCase):
    """One order, to be paid."""

    def setUp(self) -> None:
        self.order = Order.objects.create(buyer="Ada", total=AMOUNT)

    def assert_paid_once(self, charges: list[dict[str, Any]]) -> None:
        """Both books have one entry, and it is the same."""
        payment = Payment.objects.get()
        assert [charge["id"] for charge in charges] == [payment.charge_id]
        assert (charges[0]["amount"], str(payment.amount)) == (2468, AMOUNT)


class TwoAtOnce(OneOrder):
    """The second comes while the acquirer still holds the answer to the first."""

    def setUp(self) -> None:
        super().setUp()
        server = self.enterContext(acquirer_here())
        self.books = self.enterContext(telling(server))
        self.enterContext(override_settings(ACQUIRER_URL=server.url))
        self.pool = self.enterContext(ThreadPoolExecutor(2))

    def by_program(self, key: str = "k-1") -> Any:
        return Client().post(
            f"/api/orders/{self.order.reference}/payments/",
            {"amount": AMOUNT},
            content_type=JSON,
            headers={"idempotency-key": key},
        )

    def by_page(self, key: str = "k-1") -> Any:
        form = {"idempotency_key": key, "amount": AMOUNT}
        return Client().post(f"/orders/{self.order.reference}/pay/", form)

    def begin(self, act: Callable[..., Any], *arguments: str) -> "Future[Any]":
        """Do it on a connection of its own."""

        def run() -> Any:
            try:
                return act(*arguments)
            finally:
                connection.close()

        return self.pool.submit(run)

    def test_a_program_is_told_that_the_same_is_on_its_way_and_later_how_it_ended(self) -> None:
        first = self.begin(self.by_program)
        self.books.until_booked()
        second = self.by_program()
        assert (second.status_code, second.json()["code"]) == (409, "in_progress")
        assert int(second["Retry-After"]) >= 1
        self.books.go.set()
        third = self.by_program() if first.result().status_code == 201 else None
        assert third.content == first.result().content
        assert third["Idempotent-Replayed"] == "true"
        self.assert_paid_once(self.books.charges())
        assert self.books.asked == 1

    def test_the_second_click_on_a_page_waits_for_the_first_and_leads_where_it_does(self) -> None:
        first = self.begin(self.by_page)
        self.books.until_booked()
        looked_twice = Event()
        second = self.begin(lambda: seeing_it_wait(self.by_page, looked_twice))
        assert looked_twice.wait(20), "the second click does not wait"
        self.books.go.set()
        answers = [first.result(), second.result()]
        assert [answer["Location"] for answer in answers] == [self.order.get_absolute_url()] * 2
        assert [answer.get("Idempotent-Replayed") for answer in answers] == [None, "true"]
        self.assert_paid_once(self.books.charges())
        assert self.books.asked == 1

    def test_two_keys_for_one_order_are_one_charge(self) -> None:
        """Two pages, or a page opened again: both requests are at the acquirer at once."""
        both = [self.begin(self.by_program, key) for key in ("k-1", "k-2")]
        for _ in both:
            self.books.until_booked()
        self.books.go.set()
        answers = sorted((each.result() for each in both), key=lambda each: each.status_code)
        assert [answer.status_code for answer in answers] == [201, 409]
        assert answers[1].json()["title"] == "Paid already"
        self.assert_paid_once(self.books.charges())

    @override_settings(SHOP_IDEMPOTENCY=False)
    def test_without_idempotent_two_clicks_are_two_charges(self) -> None:
        for charged, act in ((2, self.by_program), (4, self.by_page)):
            clicks = [self.begin(act), self.begin(act)]
            for _ in clicks:
                self.books.until_booked()
            self.books.go.set()
            for click in clicks:
                click.result()
            assert len(self.books.charges()) == charged
            assert Payment.objects.count() == 2
            Payment.objects.all().delete()
            self.books.go.clear()


def seeing_it_wait(act: Callable[[], Any], looked_twice: Event) -> Any:
    """Do it, and tell when it has asked for its key a second time."""
    looks = 0

    def look(execute: Any, sql: str, *arguments: Any) -> Any:
        nonlocal looks
        looks += "pg_try_advisory_xact_lock" in sql
        if looks > 1:
            looked_twice.set()
        return execute(sql, *arguments)

    with connection.execute_wrapper(look):
        return act()


class LostAnswers(AsksAcquirer, OneOrder):
    """Between the shop and the acquirer; the site is this process."""

    def pay(self) -> Any:
        return self.client.post(
            f"/api/orders/{self.order.reference}/payments/",
            {"amount": AMOUNT},
            content_type=JSON,
            headers={"idempotency-key": "k-1"},
        )

    def test_the_acquirers_answer_is_lost_and_the_retry_finds_the_same_charge(self) -> None:
        with running_proxy(self.url, drop=1) as lossy, override_settings(ACQUIRER_URL=lossy):
            assert self.pay().status_code == 502
        [charge] = self.charges(self.order.reference)
        assert not Payment.objects.exists()
        assert self.pay().json()["payment"] == charge["id"]
        self.assert_paid_once(self.charges(self.order.reference))

    @override_settings(SHOP_IDEMPOTENCY=False)
    def test_without_idempotent_the_retry_is_a_second_charge(self) -> None:
        with running_proxy(self.url, drop=1) as lossy, override_settings(ACQUIRER_URL=lossy):
            assert self.pay().status_code == 502
        assert self.pay().status_code == 201
        assert len(self.charges(self.order.reference)) == 2
        assert Payment.objects.count() == 1

    def test_a_request_that_never_arrived_is_no_charge_and_the_retry_is_the_first(self) -> None:
        with (
            running_proxy(self.url, drop=0, drop_requests=1) as lossy,
            override_settings(ACQUIRER_URL=lossy),
        ):
            assert self.pay().status_code == 502
        assert self.charges(self.order.reference) == []
        assert self.pay().status_code == 201
        self.assert_paid_once(self.charges(self.order.reference))


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

    def lease_is_over(self) -> None:
        """As if its time had passed: the worker that has it is dead."""
        assert IdempotencyKey.objects.filter(completed_at=None).update(locked_until=Now())


class KilledWorker(RealSite):
    def test_between_charge_and_record_the_retry_records_the_same_charge(self) -> None:
        first = self.begin()
        self.books.until_booked()
        self.kill_the_worker()
        assert first.result().status == 0
        self.books.go.set()
        assert (len(self.books.charges()), Payment.objects.count()) == (1, 0)

        early = self.pay()
        assert (early.status, b'"in_progress"' in early.content) == (409, True)
        assert early.retry_after is not None
        self.lease_is_over()
        retry = self.pay()
        assert (retry.status, retry.replayed) == (201, False)
        again = self.pay()
        assert (again.content, again.replayed) == (retry.content, True)
        self.assert_paid_once(self.books.charges())

    def test_a_buyer_who_opens_the_page_again_has_another_key_and_the_same_charge(self) -> None:
        first = self.begin()
        self.books.until_booked()
        self.kill_the_worker()
        assert first.result().status == 0
        self.books.go.set()
        assert self.pay("k-2").status == 201
        self.lease_is_over()
        late = self.pay()
        assert (late.status, b"Paid already" in late.content) == (409, True)
        self.assert_paid_once(self.books.charges())

    def test_after_the_charge_is_recorded_the_acquirer_is_not_asked_again(self) -> None:
        first = self.begin()
        self.books.until_booked()
        with no_payments():
            self.books.go.set()
            until(blocked, "the worker did not come to record the payment")
            self.kill_the_worker()
            assert first.result().status == 0
        [request] = IdempotencyKey.objects.all()
        assert request.steps["charge"]["result"] == self.books.charges()[0]["id"]
        self.lease_is_over()
        assert self.pay().status == 201
        self.assert_paid_once(self.books.charges())
        assert self.books.asked == 1

    def test_an_answer_that_is_lost_on_its_way_to_the_client_comes_with_the_retry(self) -> None:
        self.books.go.set()
        with running_proxy(self.site, drop=1) as lossy:
            assert self.pay(site=lossy).status == 0
        until(Payment.objects.all, "the payment is recorded")
        retry = self.pay()
        assert (retry.status, retry.replayed) == (201, True)
        assert json.loads(retry.content)["payment"] == Payment.objects.get().charge_id
        self.assert_paid_once(self.books.charges())


class KilledWorkerWithoutIdempotent(RealSite):
    guarded = False

    def test_the_retry_is_a_second_charge(self) -> None:
        first = self.begin()
        self.books.until_booked()
        self.kill_the_worker()
        assert first.result().status == 0
        self.books.go.set()
        assert self.pay().status == 201
        assert (len(self.books.charges()), Payment.objects.count()) == (2, 1)


def _pay(site: str, reference: UUID, key: str) -> Answer:
    with closing(HTTPConnection(urlsplit(site).netloc, timeout=30)) as line:
        try:
            line.request(
                "POST",
                f"/api/orders/{reference}/payments/",
                json.dumps({"amount": AMOUNT}),
                {"Content-Type": JSON, "Idempotency-Key": key},
            )
            response = line.getresponse()
            content = response.read()
        except (OSError, HTTPException):
            return Answer(0)
    replayed = response.getheader("Idempotent-Replayed") == "true"
    return Answer(response.status, content, replayed, response.getheader("Retry-After"))


@contextmanager
def no_payments() -> Iterator[None]:
    """Hold up whoever records a payment, for the time of the block."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE shop_payment IN ACCESS EXCLUSIVE MODE")
        yield


def blocked() -> list[Any]:
    """Those whom :func:`no_payments` holds up."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'relation'")
        return cursor.fetchall()
