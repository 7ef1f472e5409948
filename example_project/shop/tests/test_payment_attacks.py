"""What somebody may try who means no good: no second charge, nobody else's order, no error 500."""

import re
from decimal import Decimal
from uuid import uuid4

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client, override_settings

from django_dblock import IdempotencyKey
from shop.models import Order, Payment
from shop.tests.acquirers import WithAcquirer
from shop.tests.helpers import PROBLEM

JSON = "application/json"
HTML = "text/html,*/*;q=0.8"
AMOUNT = "24.68"


class Attack(WithAcquirer):
    def setUp(self) -> None:
        self.order, self.other = (
            Order.objects.create(buyer=buyer, total=AMOUNT) for buyer in ("Ada", "Bob")
        )

    def by_page(self, order: Order, client: Client | None = None, **form: object):
        form = {"idempotency_key": "k-1", "amount": AMOUNT} | form
        address = f"/orders/{order.reference}/pay/"
        return (client or self.client).post(address, form, headers={"accept": HTML})

    def by_program(self, order: Order, body: object = None, key: str = "k-1"):
        return Client().post(
            f"/api/orders/{order.reference}/payments/",
            {"amount": AMOUNT} if body is None else body,
            content_type=JSON,
            headers={"idempotency-key": key},
        )

    def fields(self, order: Order) -> dict[str, str]:
        page = self.client.get(order.get_absolute_url()).content.decode()
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="(.+?)">', page))

    def assert_paid_once(self, *orders: Order) -> None:
        """Each of these, in both books, and no other."""
        payments = Payment.objects.all()
        assert sorted(payment.order_id for payment in payments) == [each.pk for each in orders]
        for order in orders:
            [charge] = self.charges(order.reference)
            payment = order.payments.get()
            assert (charge["id"], charge["amount"]) == (payment.charge_id, 2468)
            assert payment.amount == Decimal(AMOUNT)


class OddKeys(Attack):
    def test_a_key_that_is_none_is_refused_and_leaves_nothing(self) -> None:
        for key in (
            "",
            " ",
            "k" * 256,
            "k" * 1_000_000,
            "a\x00b",
            "a\r\nb",
            "ключ",
            "a, b",
        ):
            with self.subTest(key=key[:9]):
                response = self.by_page(self.order, idempotency_key=key)
                self.assertContains(response, "idempotency key", status_code=400)
        assert not IdempotencyKey.objects.exists()
        self.assert_paid_once()

    def test_one_that_looks_like_code_is_a_key_like_any_other(self) -> None:
        for key in ("'/**/OR/**/1=1--", "../../etc", "%00", "<script>", "{{7*7}}", "k" * 255):
            assert self.by_page(self.order, idempotency_key=key).status_code == 302
        self.assert_paid_once(self.order)

    def test_two_spellings_of_a_key_are_one(self) -> None:
        first = self.by_program(self.order, key="abc")
        again = self.by_program(self.order, key='"abc"')
        assert (first.status_code, again["Idempotent-Replayed"]) == (201, "true")

    def test_of_two_keys_in_one_form_none_is_made(self) -> None:
        """The last one counts, as for every field."""
        for _ in range(2):
            assert self.by_page(self.order, idempotency_key=["k-1", "k-2"]).status_code == 302
        assert IdempotencyKey.objects.get().key == "k-2"
        self.assert_paid_once(self.order)


class OthersOrders(Attack):
    def test_a_key_pays_the_order_it_comes_with_and_shows_no_other(self) -> None:
        first = self.by_program(self.order)
        second = self.by_program(self.other)
        assert first.status_code == second.status_code == 201
        assert "Idempotent-Replayed" not in second
        assert str(self.order.reference) not in second.content.decode()
        self.assert_paid_once(self.order, self.other)

    def test_who_does_not_know_the_reference_learns_nothing_from_the_key(self) -> None:
        self.by_program(self.order)
        response = self.by_program(Order(reference=uuid4()))
        assert (response.status_code, response["Content-Type"]) == (404, PROBLEM)
        assert IdempotencyKey.objects.count() == 1

    def test_the_form_of_one_order_does_not_pay_another(self) -> None:
        """An order has the total that its own page has shown."""
        self.other.total = "99.00"
        self.other.save()
        self.by_page(self.other, **self.fields(self.order))
        self.assert_paid_once()

    def test_a_key_is_not_to_be_had_for_another_amount(self) -> None:
        self.by_page(self.order)
        response = self.by_page(self.order, amount="0.01")
        self.assertContains(response, "another request", status_code=422)
        assert self.by_program(self.other, {"amount": "0.01"}).status_code == 409
        self.assert_paid_once(self.order)


class BackAndForth(Attack):
    def test_a_replay_after_logout_is_the_same_for_everybody_and_pays_nothing(self) -> None:
        """It leads to the order, whose address the visitor had to know to come here."""
        self.client.force_login(get_user_model().objects.create_user("ada"))
        first = self.by_page(self.order)
        self.client.logout()
        for client in (self.client, Client()):
            again = self.by_page(self.order, client)
            assert (again["Location"], again["Idempotent-Replayed"]) == (first["Location"], "true")
            assert "Set-Cookie" not in again
            assert not again.cookies
        self.assert_paid_once(self.order)

    def test_back_and_pay_again_shows_the_order_as_paid(self) -> None:
        form = self.fields(self.order)
        for _ in range(3):
            response = self.by_page(self.order, **form)
            page = self.client.get(response["Location"])
            self.assertContains(page, '<span class="good">24.68 EUR</span>', html=True)
            self.assertNotContains(page, "<button>Pay")
        self.assert_paid_once(self.order)

    def test_two_tabs_one_after_the_other(self) -> None:
        tabs = [self.fields(self.order) for _ in range(2)]
        for form in (*tabs, *tabs):
            assert self.by_page(self.order, **form)["Location"] == self.order.get_absolute_url()
        self.assert_paid_once(self.order)

    def test_a_paid_order_is_paid_for_everybody_who_asks_in_whatever_way(self) -> None:
        self.by_page(self.order)
        for number in range(3):
            assert self.by_program(self.order, key=f"other-{number}").status_code == 409
            assert self.by_page(self.order, idempotency_key=f"p-{number}").status_code == 302
        assert self.by_program(self.order).json()["code"] == "key_reused"
        self.assert_paid_once(self.order)

    def test_another_method_is_not_a_way_round(self) -> None:
        for address in ("/api/orders/{}/payments/", "/orders/{}/pay/"):
            for method in ("get", "put", "patch", "delete", "head", "options"):
                asked = getattr(self.client, method)(
                    address.format(self.order.reference), headers={"idempotency-key": "k-1"}
                )
                assert asked.status_code == 405
        assert not IdempotencyKey.objects.exists()
        self.assert_paid_once()


class OddBodies(Attack):
    LARGE = "x" * 3_000_000

    def test_three_megabytes_are_too_much_for_a_program(self) -> None:
        for address in (
            f"/api/orders/{self.order.reference}/payments/",
            "/api/purchases/",
        ):
            response = self.client.post(
                address,
                {"amount": AMOUNT, "more": self.LARGE},
                content_type=JSON,
                headers={"idempotency-key": "k-1"},
            )
            assert (response.status_code, response["Content-Type"]) == (413, PROBLEM)
        self.assert_paid_once()

    def test_three_megabytes_are_too_much_for_a_form(self) -> None:
        with self.assertLogs("django.security.RequestDataTooBig"):
            assert self.by_page(self.order, more=self.LARGE).status_code == 400
        self.assert_paid_once()

    def test_a_file_of_three_megabytes_is_passed_over(self) -> None:
        for _ in range(2):
            file = SimpleUploadedFile("large", self.LARGE.encode())
            assert self.by_page(self.order, more=file).status_code == 302
        self.assert_paid_once(self.order)

    def test_what_is_hard_to_read_is_not_json(self) -> None:
        for body in ("[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "\x00", "", b"\xff\xfe"):
            response = self.by_program(self.order, body)
            assert (response.status_code, response["Content-Type"]) == (400, PROBLEM)
        self.assert_paid_once()

    def test_an_amount_that_is_none_is_refused(self) -> None:
        for amount in (
            *("1e999999", "-24.68", "NaN", "Infinity", "24.68\x00", "\ud800", "٢٤", "0x18"),
            *(True, None, [], {}, ["24.68"], 10**400, 1e308),
        ):
            with self.subTest(amount=str(amount)[:20].encode("ascii", "replace")):
                response = self.by_program(self.order, {"amount": amount})
                assert response.status_code in (400, 409)
                assert response["Content-Type"] == PROBLEM
        assert not IdempotencyKey.objects.exists()
        self.assert_paid_once()

    def test_the_same_sum_in_another_spelling_is_the_same_sum(self) -> None:
        """But another request, which needs another key."""
        assert self.by_program(self.order, {"amount": 24.68}).status_code == 201
        assert self.by_program(self.order).status_code == 422
        self.assert_paid_once(self.order)


class ManyKeys(Attack):
    def test_an_order_has_a_hundred_keys_at_most(self) -> None:
        assert settings.DBLOCK_IDEMPOTENCY_MAX_KEYS == 100

    @override_settings(DBLOCK_IDEMPOTENCY_MAX_KEYS=3)
    def test_nobody_fills_the_table_by_way_of_one_order(self) -> None:
        self.by_program(self.order)
        said = [self.by_program(self.order, key=f"more-{n}").status_code for n in range(4)]
        assert said == [409, 409, 429, 429]
        assert self.by_program(self.order)["Idempotent-Replayed"] == "true"
        assert self.by_program(self.other).status_code == 201
