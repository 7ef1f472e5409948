"""Against a real acquirer: a process of its own, asked over HTTP."""

import http.client
import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.test import TestCase, override_settings

from shop.demo.site import running_acquirer
from shop.models import Order, Payment
from shop.payments import PaymentFailed, pay
from shop.purchase import buy
from shop.tests.helpers import product


class WithAcquirer(TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.url = cls.enterClassContext(running_acquirer(Path(folder) / "charges.sqlite3"))
        cls.enterClassContext(override_settings(ACQUIRER_URL=cls.url))

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def charges(self, reference: object) -> list[dict[str, Any]]:
        charges = self.ask("GET", "/charges")[1]["charges"]
        return [charge for charge in charges if charge["reference"] == str(reference)]


class Paying(WithAcquirer):
    def test_both_books_agree_on_a_payment(self) -> None:
        product(price="12.34")
        order = buy("bell", 2, "Ada")
        response = self.client.post(f"/orders/{order.reference}/pay/", follow=True)
        self.assertContains(response, "Paid. Thank you!")
        payment = Payment.objects.get()
        [charge] = self.charges(order.reference)
        assert (charge["id"], charge["amount"]) == (payment.charge_id, 2468)
        assert payment.amount == order.total

    def test_an_order_that_is_known_to_be_paid_is_not_charged_again(self) -> None:
        product()
        order = buy("bell", 1, "Ada")
        assert pay(order) == pay(order)
        assert len(self.charges(order.reference)) == 1

    @override_settings(ACQUIRER_URL="http://127.0.0.1:1")
    def test_without_an_answer_the_order_stays_unpaid(self) -> None:
        product()
        order = buy("bell", 1, "Ada")
        response = self.client.post(f"/orders/{order.reference}/pay/", follow=True)
        self.assertContains(response, "No answer from the acquirer")
        assert not order.is_paid

    def test_a_refusal_is_not_a_payment(self) -> None:
        order = Order.objects.create(buyer="Ada", total=0)
        with self.assertRaisesMessage(PaymentFailed, "The acquirer refused"):
            pay(order)
        assert not order.is_paid


class TheAcquirer(WithAcquirer):
    def test_one_key_is_one_charge(self) -> None:
        body = {"amount": 100, "currency": "EUR", "reference": "one-key"}
        first = self.ask("POST", "/charges", body, **{"Idempotency-Key": "k1"})
        again = self.ask("POST", "/charges", body, **{"Idempotency-Key": "k1"})
        assert (first[0], again[0]) == (201, 200)
        assert first[1] == again[1]
        assert len(self.charges("one-key")) == 1

    def test_a_key_is_not_for_two_different_charges(self) -> None:
        body = {"amount": 100, "currency": "EUR", "reference": "two"}
        self.ask("POST", "/charges", body, **{"Idempotency-Key": "k2"})
        status, _ = self.ask("POST", "/charges", body | {"amount": 1}, **{"Idempotency-Key": "k2"})
        assert status == 422

    def test_without_a_key_each_request_is_a_charge(self) -> None:
        body = {"amount": 100, "currency": "EUR", "reference": "no-key"}
        assert {self.ask("POST", "/charges", body)[0] for _ in range(2)} == {201}
        assert len(self.charges("no-key")) == 2

    def test_nonsense_is_refused(self) -> None:
        for body in (None, [], {}, {"amount": "1", "currency": "EUR", "reference": "x"}):
            assert self.ask("POST", "/charges", body)[0] == 400
        assert self.ask("GET", "/nowhere")[0] == 404
        assert self.ask("POST", "/nowhere")[0] == 404
        assert self.ask("GET", "/health") == (200, {"status": "ok"})
