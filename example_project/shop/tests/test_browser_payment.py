"""Somebody clicks "Pay" again, because nothing seems to happen."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import modify_settings, override_settings, tag

from shop import paying
from shop.models import Order, Payment
from shop.tests.acquirers import acquirer_here, telling
from shop.tests.browser import Browser, browser


@contextmanager
def arrivals() -> Iterator[threading.Semaphore]:
    """Count the clicks that reach the shop, for the time of the block."""
    arrived = threading.Semaphore(0)
    find = paying.get_object_or_404

    def and_tell(*arguments: Any, **keywords: Any) -> Any:
        arrived.release()
        return find(*arguments, **keywords)

    with mock.patch.object(paying, "get_object_or_404", and_tell):
        yield arrived


@tag("browser")
@modify_settings(MIDDLEWARE={"append": "shop.tests.browser.StrictPolicy"})
class DoubleClick(StaticLiveServerTestCase):
    """The second click comes while the acquirer holds its answer to the first."""

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
        self.ann.leave(lambda: self.ann.open(self.order.get_absolute_url()))

    def tearDown(self) -> None:
        assert self.ann.complaints() == []

    def click(self) -> None:
        self.ann.find("main form button").click()

    def test_the_order_is_paid_once_and_shown_as_paid(self) -> None:
        arrived = self.enterContext(arrivals())
        self.click()
        self.books.until_booked()
        self.click()
        for _ in range(2):
            assert arrived.acquire(timeout=20), "the second click does not come"
        self.ann.leave(self.books.go.set)
        assert "Paid" in self.ann.text("main")
        assert "24.68 EUR" in self.ann.text(".good")
        assert self.ann.all("main form") == []
        [charge] = self.books.charges()
        assert charge["id"] == Payment.objects.get().charge_id

    @override_settings(SHOP_IDEMPOTENCY=False)
    def test_without_idempotent_it_is_paid_twice(self) -> None:
        self.click()
        self.books.until_booked()
        self.click()
        self.books.until_booked()
        self.ann.leave(self.books.go.set)
        assert len(self.books.charges()) == 2
