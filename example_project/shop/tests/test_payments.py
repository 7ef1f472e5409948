"""One buyer after the other: by the page and by program."""

import re
from decimal import Decimal
from uuid import uuid4

from django.db import connection
from django.test import Client, SimpleTestCase, TransactionTestCase, override_settings
from django.test.utils import CaptureQueriesContext

from django_dblock import IdempotencyKey, fenced_semaphore
from shop.models import Order, Payment
from shop.payments import PaymentFailed, _charge, cents
from shop.purchase import buy
from shop.tests.acquirers import AsksAcquirer, WithAcquirer
from shop.tests.helpers import PROBLEM, product

JSON = "application/json"
NOBODY = "http://127.0.0.1:1"


class Paying(WithAcquirer):
    def setUp(self) -> None:
        product(price="12.34")
        self.order = buy("bell", 2, "Ada")

    def assert_paid_once(self) -> None:
        """Both books agree."""
        payment = Payment.objects.get()
        [charge] = self.charges(self.order.reference)
        assert (charge["id"], charge["amount"]) == (payment.charge_id, 2468)
        assert payment.amount == self.order.total == Decimal("24.68")

    def assert_not_paid(self) -> None:
        assert not Payment.objects.exists()
        assert self.charges(self.order.reference) == []


class ByPage(Paying):
    def form(self) -> dict[str, str]:
        """What a browser sends of the page's form."""
        page = self.client.get(f"/orders/{self.order.reference}/").content.decode()
        fields = re.findall(r'<input type="hidden" name="(\w+)" value="(.+?)">', page)
        return dict(fields)

    def click(self, form: dict[str, str], **changes: str):
        return self.client.post(f"/orders/{self.order.reference}/pay/", form | changes)

    def test_both_books_agree_on_a_payment(self) -> None:
        response = self.click(self.form())
        self.assertContains(self.client.get(response["Location"]), "Paid. Thank you!")
        self.assert_paid_once()

    def test_a_second_click_on_the_same_page_leads_where_the_first_did(self) -> None:
        form = self.form()
        first, second = self.click(form), self.click(form, csrfmiddlewaretoken="another")
        assert first.status_code == second.status_code == 302
        assert first["Location"] == second["Location"]
        assert second["Idempotent-Replayed"] == "true"
        self.assert_paid_once()

    def test_each_page_has_a_key_of_its_own_and_the_order_is_paid_once_for_all(self) -> None:
        one, other = self.form(), self.form()
        assert one["idempotency_key"] != other["idempotency_key"]
        self.click(one)
        response = self.click(other)
        self.assertContains(self.client.get(response["Location"]), "Paid")
        self.assert_paid_once()

    def test_without_an_answer_the_order_stays_unpaid_and_the_same_page_can_try_again(self) -> None:
        form = self.form()
        with override_settings(ACQUIRER_URL=NOBODY):
            failed = self.click(form)
        self.assertContains(failed, "No answer from the acquirer", status_code=502)
        assert failed.context["payment_key"] == form["idempotency_key"]
        self.assert_not_paid()
        assert self.click(form).status_code == 302
        self.assert_paid_once()

    def test_another_total_than_the_page_has_shown_is_not_charged(self) -> None:
        for amount in ("24.69", "", "NaN"):
            response = self.click(self.form(), amount=amount)
            self.assertContains(self.client.get(response["Location"]), "another total")
        self.assert_not_paid()

    def test_a_refusal_is_not_a_payment(self) -> None:
        self.order = Order.objects.create(buyer="Ada", total=0)
        response = self.click(self.form())
        self.assertContains(self.client.get(response["Location"]), "The acquirer refused")
        self.assert_not_paid()

    def test_a_form_without_a_key_is_refused(self) -> None:
        form = self.form()
        del form["idempotency_key"]
        assert self.click(form).status_code == 400
        self.assert_not_paid()

    def test_what_is_not_an_order_leaves_no_key_behind(self) -> None:
        address = f"/orders/{uuid4()}/pay/"
        assert self.client.post(address, {"idempotency_key": "k"}).status_code == 404
        assert not IdempotencyKey.objects.exists()

    def test_a_foreign_page_can_not_make_a_browser_pay(self) -> None:
        strict = Client(enforce_csrf_checks=True)
        address = f"/orders/{self.order.reference}/pay/"
        assert strict.post(address, self.form()).status_code == 403
        self.assert_not_paid()

    @override_settings(SHOP_IDEMPOTENCY=False)
    def test_with_the_switch_off_the_page_says_so_and_pays_without_a_key(self) -> None:
        self.assertContains(self.client.get("/"), "who clicks twice pays twice")
        assert self.click(self.form()).status_code == 302
        self.assert_paid_once()
        assert self.charges(self.order.reference)[0]["idempotency_key"] is None
        assert not IdempotencyKey.objects.exists()


class ByProgram(Paying):
    def pay(self, key: str | None = "k-1", body: object = None, **headers: str):
        if key is not None:
            headers["idempotency-key"] = key
        address = f"/api/orders/{self.order.reference}/payments/"
        content = {"amount": "24.68"} if body is None else body
        strict = Client(enforce_csrf_checks=True)
        return strict.post(address, content, content_type=JSON, headers=headers)

    def assert_problem(self, response, status: int, title: str = "") -> None:
        assert (response.status_code, response["Content-Type"]) == (status, PROBLEM)
        assert title in response.json()["title"]

    def test_a_payment_is_created_and_both_books_agree(self) -> None:
        response = self.pay()
        assert response.status_code == 201
        assert response.json() == {
            "payment": Payment.objects.get().charge_id,
            "order": str(self.order.reference),
            "amount": "24.68",
            "currency": "EUR",
        }
        assert response["Location"] == f"http://testserver/orders/{self.order.reference}/"
        self.assert_paid_once()

    def test_a_retry_has_the_same_answer_to_the_byte(self) -> None:
        first, again = self.pay(), self.pay()
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again["Location"] == first["Location"]
        assert "Idempotent-Replayed" not in first
        assert again["Idempotent-Replayed"] == "true"
        self.assert_paid_once()

    def test_a_retry_with_another_key_is_told_that_the_order_is_paid(self) -> None:
        self.pay()
        self.assert_problem(self.pay("k-2"), 409, "Paid already")
        self.assert_paid_once()

    def test_a_key_is_needed_and_belongs_to_one_order(self) -> None:
        self.assert_problem(self.pay(None), 400)
        self.assert_problem(self.pay("a, b\t"), 400)
        first, self.order = self.order, buy("bell", 1, "Ada")
        assert self.pay(body={"amount": "12.34"}).status_code == 201
        self.order = first
        assert self.pay().status_code == 201
        assert Payment.objects.count() == 2

    def test_the_pages_key_is_not_for_programs(self) -> None:
        form = {"idempotency_key": "k-1", "amount": "24.68"}
        self.client.post(f"/orders/{self.order.reference}/pay/", form)
        assert self.pay().json()["code"] == "key_reused"
        self.assert_paid_once()

    def test_without_an_answer_the_same_key_can_try_again(self) -> None:
        with override_settings(ACQUIRER_URL=NOBODY):
            self.assert_problem(self.pay(), 502, "No answer")
        self.assert_not_paid()
        assert self.pay().status_code == 201
        self.assert_paid_once()

    def test_a_refusal_is_402_and_stays_one_for_its_key(self) -> None:
        self.order = Order.objects.create(buyer="Ada", total=0)
        for _ in range(2):
            self.assert_problem(self.pay(body={"amount": "0"}), 402, "Refused")
        self.assert_not_paid()

    def test_what_is_not_a_payment_of_this_order_leaves_no_key_behind(self) -> None:
        for body, status in (
            ("amount=1", 400),
            ("[1]", 400),
            ("\xff", 400),
            ({}, 400),
            ({"amount": "12.345"}, 400),
            ({"amount": "sNaN"}, 400),
            ({"amount": "24.69"}, 409),
        ):
            with self.subTest(body=body):
                self.assert_problem(self.pay(body=body), status)
        self.order = Order(reference=uuid4())
        self.assert_problem(self.pay(), 404, "No such order")
        assert not IdempotencyKey.objects.exists()


class Statements(AsksAcquirer, TransactionTestCase):
    """With real transactions: the round trips of the API's payment."""

    def setUp(self) -> None:
        product(price="12.34")
        reference = buy("bell", 2, "Ada").reference
        self.address = f"/api/orders/{reference}/payments/"

    def sent(self) -> list[str]:
        with CaptureQueriesContext(connection) as sent:
            response = self.client.post(
                self.address,
                {"amount": "24.68"},
                content_type=JSON,
                headers={"idempotency-key": "k-1"},
            )
        assert response.status_code == 201
        return [kind for query in sent if (kind := _kind(query["sql"]))]

    def test_the_statements_of_a_payment_are_counted(self) -> None:
        """The order, the claim, the look for a payment, the permit, the step, the payment."""
        sent = self.sent()
        assert sent == [
            "SELECT shop_order",
            "SELECT django_dblock_idempotencykey",
            "INSERT django_dblock_idempotencykey",
            "SELECT shop_payment",
            "SELECT django_dblock_fencedlock",  # makes the permit's row, the first time
            "SELECT django_dblock_fencedlock",
            "UPDATE django_dblock_idempotencykey",
            "SELECT shop_payment",
            "INSERT shop_payment",
            "UPDATE django_dblock_idempotencykey",
            "SELECT django_dblock_idempotencykey",  # after COMMIT: the response is really there
        ], sent

    def test_the_statements_of_a_replay_are_counted(self) -> None:
        self.sent()
        assert self.sent() == [
            "SELECT shop_order",
            "SELECT django_dblock_idempotencykey",
        ]


def _kind(sql: str) -> str:
    """What a statement does, and to which table; nothing for those that bound transactions."""
    found = re.search(r'\b(INSERT INTO|UPDATE|FROM) "?(shop_\w+|django_dblock_\w+)', sql)
    if found is None:
        return ""
    verb = {"INSERT INTO": "INSERT", "FROM": "SELECT"}.get(found[1], found[1])
    return f"{verb} {found[2]}"


class Cents(SimpleTestCase):
    def test_an_amount_is_whole_cents_or_none(self) -> None:
        """No float comes near: 1.15 * 100 would be 114.99999999999999."""
        for amount, expected in (
            ("1.15", 115),
            ("0.29", 29),
            ("100", 10_000),
            ("9999999.99", 999999999),
        ):
            assert cents(Decimal(amount)) == expected
        with self.assertRaisesMessage(ValueError, "whole number of cents"):
            cents(Decimal("0.001"))


class CallsAtATime(TransactionTestCase):
    """The acquirer allows so many calls at a time, of all processes together."""

    @override_settings(SHOP_ACQUIRER_CALLS=1, ACQUIRER_TIMEOUT=0.2)
    def test_one_more_call_waits_and_then_says_that_the_acquirer_is_busy(self) -> None:
        with (
            fenced_semaphore("acquirer", permits=1, ttl=60),
            self.assertRaisesMessage(PaymentFailed, "The acquirer is busy"),
        ):
            _charge(Order.objects.create(buyer="Ada", total=Decimal("1.00")), key=None)
