"""The shop by program."""

from django.contrib.auth import get_user_model
from django.test import Client, TestCase, override_settings

from shop.models import Order, Product
from shop.purchase import buy
from shop.tests.helpers import PROBLEM, held_elsewhere, product

JSON = "application/json"


class Purchases(TestCase):
    def purchase(self, **body: object):
        return Client(enforce_csrf_checks=True).post("/api/purchases/", body, content_type=JSON)

    def test_a_purchase_is_created_without_cookie_or_token(self) -> None:
        product()
        response = self.purchase(sku="bell", quantity=1, buyer="Ada")
        assert response.status_code == 201
        order = Order.objects.get()
        assert response.json() == {"order": str(order.reference), "total": "9.50"}
        assert response["Location"] == f"http://testserver/orders/{order.reference}/"
        assert response["Server-Timing"] == "lock;dur=0.0"

    def test_refusals_are_problems(self) -> None:
        product(stock=0)
        for body, status in (
            ({"sku": "bell", "quantity": 1, "buyer": "Ada"}, 409),
            ({"sku": "whistle", "quantity": 1, "buyer": "Ada"}, 404),
            ({"sku": "bell", "quantity": -1, "buyer": "Ada"}, 400),
            ({}, 400),
        ):
            with self.subTest(body=body):
                response = self.purchase(**body)
                assert (response.status_code, response["Content-Type"]) == (status, PROBLEM)

    def test_what_is_not_json_is_refused(self) -> None:
        for body in ("sku=bell", "[1]", "\xff"):
            response = self.client.post("/api/purchases/", body, content_type=JSON)
            assert response.status_code == 400

    @override_settings(DBLOCK_ADVISORY_TIMEOUT=0)
    def test_busy_is_503_with_retry_after(self) -> None:
        product()
        with held_elsewhere("inventory", "bell"):
            response = self.purchase(sku="bell", quantity=1, buyer="Ada")
        assert (response.status_code, response["Content-Type"]) == (503, PROBLEM)
        assert response["Retry-After"] == "1"

    def test_health_says_so(self) -> None:
        assert self.client.get("/health/").json() == {"status": "ok"}


class Products(TestCase):
    ADDRESS = "/api/products/bell/"

    def setUp(self) -> None:
        product(stock=10, description="Rings.")
        self.client.force_login(get_user_model().objects.create_user("clerk", is_staff=True))

    def read(self):
        return self.client.get(self.ADDRESS)

    def patch(self, tag: str | None, body: object = None, method: str = "patch", **fields: object):
        headers = {} if tag is None else {"if-match": tag}
        send = getattr(self.client, method)
        return send(self.ADDRESS, body or fields, content_type=JSON, headers=headers)

    def test_anybody_may_read_a_product_and_gets_its_tag(self) -> None:
        response = Client().get(self.ADDRESS)
        assert response.json() == {
            "sku": "bell",
            "name": "Bell",
            "description": "Rings.",
            "price": "9.50",
            "stock": 10,
        }
        assert response["ETag"].startswith('"1-')
        assert Client().head(self.ADDRESS)["ETag"] == response["ETag"]

    def test_who_has_the_present_version_gets_304(self) -> None:
        tag = self.read()["ETag"]
        again = {"if-none-match": tag}
        assert self.client.get(self.ADDRESS, headers=again).status_code == 304
        buy("bell", 1, "Ada")
        assert self.client.get(self.ADDRESS, headers=again).json()["stock"] == 9

    def test_a_change_of_the_version_that_was_read_is_saved_and_gets_a_fresh_tag(self) -> None:
        response = self.patch(self.read()["ETag"], price="5.00")
        assert (response.status_code, response.json()["price"]) == (200, "5.00")
        assert response["ETag"].startswith('"2-')
        assert response["ETag"] == self.read()["ETag"]
        assert self.patch(response["ETag"], stock=11).status_code == 200
        bell = Product.objects.get()
        assert (str(bell.price), bell.stock, bell.description) == ("5.00", 11, "Rings.")

    def test_a_change_of_what_was_sold_of_meanwhile_is_412_with_the_tag_of_now(self) -> None:
        tag = self.read()["ETag"]
        buy("bell", 1, "Ada")
        response = self.patch(tag, stock=11)
        assert (response.status_code, response["Content-Type"]) == (412, PROBLEM)
        assert response["ETag"] == self.read()["ETag"]
        assert Product.objects.get().stock == 9

    def test_a_change_that_does_not_say_what_was_read_is_428(self) -> None:
        for method in ("patch", "put"):
            response = self.patch(None, stock=11, method=method)
            assert (response.status_code, response["Content-Type"]) == (428, PROBLEM)
        assert Product.objects.get().stock == 10

    def test_put_wants_all_of_it(self) -> None:
        tag = self.read()["ETag"]
        assert self.patch(tag, stock=11, method="put").status_code == 400
        whole = {"name": "Gong", "description": "", "price": "20.00", "stock": 1}
        response = self.patch(tag, method="put", **whole)
        assert response.json() == {"sku": "bell", **whole}

    def test_what_can_not_be_saved_is_a_problem(self) -> None:
        tag = self.read()["ETag"]
        for body in ("stock=11", "[1]", "\xff", {"price": "-1"}, {"version": 7}, {"sku": "gong"}):
            with self.subTest(body=body):
                response = self.patch(tag, body)
                assert (response.status_code, response["Content-Type"]) == (400, PROBLEM)
        assert self.read()["ETag"] == tag

    def test_what_is_not_there_is_404(self) -> None:
        tag = self.read()["ETag"]
        Product.objects.all().delete()
        assert self.read().status_code == 404
        assert self.patch(tag, stock=1).status_code == 404

    def test_only_staff_write(self) -> None:
        tag = self.read()["ETag"]
        customer = get_user_model().objects.create_user("ada")
        for sign_in in (self.client.logout, lambda: self.client.force_login(customer)):
            sign_in()
            response = self.patch(tag, stock=11)
            assert (response.status_code, response["Content-Type"]) == (403, PROBLEM)
        assert Product.objects.get().stock == 10

    def test_a_foreign_page_can_not_write_in_a_clerks_name(self) -> None:
        tag, strict = self.read()["ETag"], Client(enforce_csrf_checks=True)
        strict.cookies = self.client.cookies
        response = strict.patch(
            self.ADDRESS, {"stock": 11}, content_type=JSON, headers={"if-match": tag}
        )
        assert response.status_code == 403
        assert Product.objects.get().stock == 10
