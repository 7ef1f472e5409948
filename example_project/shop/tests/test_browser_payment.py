"""Somebody clicks "Pay" again, because nothing seems to happen."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import modify_settings, override_settings, tag

from shop import paying
from shop.demo.workers import until
from shop.models import Order, Payment
from shop.tests.acquirers import acquirer_here, telling
from shop.tests.browser import Browser, browser


@contextmanager
def arrivals() -> Iterator[threading.Semaphore]:
    """Count the clicks that reach the shop, for the time of the block."""
    arrived = threading.Semaphore(0)
    pay = paying._pay  # noqa: SLF001 - the view, and the guard around it

    def and_tell(*arguments: Any) -> Any:
        arrived.release()
        return pay(*arguments)

    with mock.patch.object(paying, "_pay", and_tell):
        yield arrived


@tag("browser")
@modify_settings(MIDDLEWARE={"append": "shop.tests.browser.StrictPolicy"})
@override_settings(ACQUIRER_TIMEOUT=60)
class DoubleClick(StaticLiveServerTestCase):
    """The second click comes while the acquirer holds its answer to the first.

    The browser gives up its first request then, and shows what becomes of the second.
    """

    ann: Browser

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.ann = cls.enterClassContext(browser(cls.live_server_url, waits=False))

    def setUp(self) -> None:
        server = self.enterContext(acquirer_here())
        self.books = self.enterContext(telling(server))
        self.enterContext(override_settings(ACQUIRER_URL=server.url))
        self.order = Order.objects.create(buyer="Ada", total="24.68")
        self.show_the_order()

    def tearDown(self) -> None:
        said = self.ann.complaints()
        assert not said, said

    def show_the_order(self) -> None:
        self.ann.leave(lambda: self.ann.open(self.order.get_absolute_url()))

    def test_the_order_is_paid_once_and_shown_as_paid(self) -> None:
        arrived = self.enterContext(arrivals())
        pay = self.ann.aim("main form button")
        pay()
        self.books.until_booked()
        pay()
        for _ in range(2):
            assert arrived.acquire(timeout=30), "the second click does not come"
        self.books.go.set()
        self.ann.until("main .good")
        assert self.ann.text("main .good") == "24.68 EUR"
        assert self.ann.all("main form") == []
        [charge] = self.books.charges()
        assert charge["id"] == Payment.objects.get().charge_id
        assert self.books.asked == 1

    @override_settings(SHOP_IDEMPOTENCY=False)
    def test_without_idempotent_it_is_paid_twice(self) -> None:
        pay = self.ann.aim("main form button")
        pay()
        self.books.until_booked()
        pay()
        self.books.until_booked()
        self.books.go.set()
        self.ann.until("main .good")
        assert len(self.books.charges()) == 2
        until(lambda: Payment.objects.all()[1:], "both are recorded")
        self.show_the_order()
        assert [paid.text for paid in self.ann.all("main .good")] == ["24.68 EUR"] * 2
