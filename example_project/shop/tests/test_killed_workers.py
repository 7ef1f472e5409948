"""A worker is killed between charge and record, or before the commit: nothing is done twice.

Never at a time: the acquirer tells when it has booked, and a locked table holds up who records.
"""

import json

from django.contrib.sessions.backends.db import SessionStore

from django_dblock import IdempotencyKey
from shop.demo.site import running_proxy
from shop.demo.workers import until
from shop.models import Basket, BasketLine, Order, Payment, Product
from shop.tests.crashing import Answer, RealSite, blocked, locked, no_payments, post
from shop.tests.helpers import product


class KilledWorker(RealSite):
    def test_another_takes_its_place_and_goes_on_serving(self) -> None:
        [before] = until(self.one_worker, "there is one worker")
        self.kill_the_worker()
        until(lambda: [each for each in self.one_worker() if each != before], "there is another")
        self.books.go.set()
        assert self.pay().status == 201
        self.assert_paid_once(self.books.charges())

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


class Checkout(RealSite):
    """In atomic mode there is nothing to take over: a killed worker has done nothing."""

    def setUp(self) -> None:
        super().setUp()
        Order.objects.all().delete()
        basket = Basket.objects.create()
        BasketLine.objects.create(basket=basket, product=product("bell"), quantity=2)
        session = SessionStore()
        session["basket"] = basket.pk
        session.create()
        token = "0123456789abcdef" * 2
        self.headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"sessionid={session.session_key}; csrftoken={token}",
            "X-CSRFToken": token,
        }

    def check_out(self) -> Answer:
        return self.post("/checkout/", "buyer=Ada&idempotency_key=k-1", self.headers)

    def test_before_the_commit_nothing_is_done_and_the_retry_just_runs(self) -> None:
        with locked("shop_orderline"):
            first = self.pool.submit(self.check_out)
            until(blocked, "the worker did not come to write the order")
            self.kill_the_worker()
            assert first.result().status == 0
        assert not IdempotencyKey.objects.exists()
        assert not Order.objects.exists()
        # No lease has to run out: the dead one's transaction ends as soon as the server notices.
        retry = self.check_out()
        assert (retry.status, retry.replayed) == (302, False)
        assert self.check_out().replayed
        assert Order.objects.count() == 1
        assert Product.objects.get().stock == 1

    def test_after_the_commit_the_retry_has_the_same_order(self) -> None:
        with running_proxy(self.site, drop=1) as lossy:
            assert post(lossy, "/checkout/", "buyer=Ada&idempotency_key=k-1", self.headers) == (
                Answer(0)
            )
        until(Order.objects.all, "the order is placed")
        retry = self.check_out()
        assert retry.replayed
        assert retry.location == Order.objects.get().get_absolute_url()
        assert Product.objects.get().stock == 1


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
