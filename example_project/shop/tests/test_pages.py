from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client, TestCase, override_settings
from django.urls import reverse

from shop.models import Order, Product
from shop.purchase import buy
from shop.tests.helpers import PROBLEM, held_elsewhere, product


class VisitorsPages(TestCase):
    def test_the_shelves_show_what_is_seeded_and_seeding_twice_adds_nothing(self) -> None:
        call_command("seed", verbosity=0)
        Product.objects.filter(sku="brass-bell").update(stock=1)
        call_command("seed", verbosity=0)
        assert Product.objects.get(sku="brass-bell").stock == 1
        self.assertContains(self.client.get("/"), "Counter bell")

    def test_the_style_sheet_is_served_with_debug_off(self) -> None:
        assert self.client.get("/static/shop/shop.css").status_code == 200
        assert self.client.get("/static/admin/css/base.css").status_code == 200

    def test_a_product_is_bought_from_its_page(self) -> None:
        product(stock=1)
        self.assertContains(self.client.get("/products/bell/"), "Buy now")
        response = self.client.post("/products/bell/buy/", {"quantity": 1}, follow=True)
        self.assertContains(response, f"Order {Order.objects.get().number}")

    def test_sold_out_is_said_on_the_product_page(self) -> None:
        product(stock=0)
        response = self.client.post("/products/bell/buy/", {"quantity": 1}, follow=True)
        self.assertContains(response, "Bell is sold out.")
        assert not Order.objects.exists()

    def test_a_wrong_quantity_is_refused(self) -> None:
        product()
        assert self.client.post("/products/bell/buy/", {"quantity": 0}).status_code == 400
        assert self.client.post("/products/bell/basket/", {"quantity": ""}).status_code == 400

    def test_a_basket_with_two_products_becomes_one_order(self) -> None:
        product("bell")
        product("rope")
        for sku in ("bell", "rope", "rope"):
            self.client.post(f"/products/{sku}/basket/", {"quantity": 1})
        self.assertContains(self.client.get("/basket/"), '<span class="count">3</span>', html=True)
        response = self.client.post("/checkout/", {"buyer": "Ada"}, follow=True)
        self.assertContains(response, "28.50")
        assert dict(Product.objects.values_list("sku", "stock")) == {"bell": 2, "rope": 1}
        again = self.client.post("/checkout/", {"buyer": "Ada"}, follow=True)
        self.assertContains(again, "The basket is empty.")

    def test_a_line_can_be_taken_out_of_ones_own_basket_only(self) -> None:
        product()
        self.client.post("/products/bell/basket/", {"quantity": 1})
        stranger = Client()
        line = self.client.get("/basket/").context["basket"].lines.get()
        stranger.post(f"/basket/{line.pk}/remove/")
        self.assertContains(self.client.get("/basket/"), "Bell")
        self.client.post(f"/basket/{line.pk}/remove/")
        self.assertContains(self.client.get("/basket/"), "nothing in it yet")

    def test_pages_that_change_something_want_a_csrf_token(self) -> None:
        product()
        strict = Client(enforce_csrf_checks=True)
        assert strict.post("/products/bell/buy/", {"quantity": 1}).status_code == 403

    @override_settings(DBLOCK_ADVISORY_TIMEOUT=0)
    def test_a_busy_product_is_a_friendly_503_with_retry_after(self) -> None:
        product()
        with held_elsewhere("inventory", "bell"):
            response = self.client.post(
                "/products/bell/buy/", {"quantity": 1}, headers={"accept": "text/html,*/*;q=0.8"}
            )
        self.assertContains(response, "One moment, please", status_code=503)
        assert response["Retry-After"] == "1"


class StaffPages(TestCase):
    def test_stock_and_settlements_are_for_staff(self) -> None:
        product()
        for address in ("/stock/", "/stock/bell/", "/settlements/"):
            response = self.client.get(address)
            self.assertRedirects(response, f"{reverse('admin:login')}?next={address}")

    def test_staff_change_price_and_stock(self) -> None:
        product()
        self.sign_in()
        self.assertContains(self.client.get("/stock/"), "bell")
        response = self.client.post("/stock/bell/", {"price": "5", "stock": "7"}, follow=True)
        self.assertContains(response, "Bell: 7 in stock.")
        wrong = self.client.post("/stock/bell/", {"price": "0", "stock": "-1"})
        assert wrong.status_code == 400
        assert Product.objects.get().stock == 7

    def test_the_admin_never_writes_back_a_stock_it_has_read(self) -> None:
        bell = product(stock=3)
        self.sign_in()
        stale = Product.objects.get()
        Product.objects.update(stock=2)
        model_admin = reverse("admin:shop_product_change", args=[bell.pk])
        self.client.post(
            model_admin, {"sku": "bell", "name": "Bell", "description": "", "price": "1.00"}
        )
        bell.refresh_from_db()
        assert (bell.stock, stale.stock, str(bell.price)) == (2, 3, "1.00")

    def test_the_admin_shows_orders_and_changes_none(self) -> None:
        product()
        order = buy("bell", 1, "Ada")
        self.sign_in()
        self.assertContains(self.client.get("/admin/shop/order/"), order.number)
        address = reverse("admin:shop_order_change", args=[order.pk])
        self.assertContains(self.client.get(address), "Ada")
        assert self.client.post(address, {"buyer": "Eve"}).status_code == 403
        for model in ("payment", "settlement"):
            assert self.client.get(f"/admin/shop/{model}/").status_code == 200

    def sign_in(self) -> None:
        staff = get_user_model().objects.create_superuser("clerk", password="clerk")  # noqa: S106
        self.client.force_login(staff)


class Api(TestCase):
    def purchase(self, **body: object):
        return Client(enforce_csrf_checks=True).post(
            "/api/purchases/", body, content_type="application/json"
        )

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
            response = self.client.post("/api/purchases/", body, content_type="application/json")
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
