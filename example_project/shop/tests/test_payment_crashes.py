"""Two clicks at once, and lost answers: the order is charged once.

Each kind has a twin with ``SHOP_IDEMPOTENCY`` off, which would be worth nothing if it charged once.
Nothing here is ordered by sleeping: the acquirer tells when it has booked, and holds its answer.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

from django.db import connection
from django.test import Client, override_settings

from shop.demo.site import running_proxy
from shop.models import Payment
from shop.tests.acquirers import AsksAcquirer, acquirer_here, telling
from shop.tests.crashing import AMOUNT, JSON, OneOrder


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
