from django.core.management import call_command
from django.test import Client, TestCase, override_settings

from shop.models import Order, Product
from shop.tests.helpers import held_elsewhere, product


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

    def test_a_second_click_on_order_leads_to_the_same_order(self) -> None:
        product("bell")
        self.client.post("/products/bell/basket/", {"quantity": 1})
        key = self.client.get("/basket/").context["checkout_key"]
        form = {"buyer": "Ada", "idempotency_key": key}
        first, second = (self.client.post("/checkout/", form) for _ in range(2))
        assert first["Location"] == second["Location"] == Order.objects.get().get_absolute_url()
        assert second["Idempotent-Replayed"] == "true"
        stranger = self.client_class()
        response = stranger.post("/checkout/", form, follow=True)
        self.assertContains(response, "The basket is empty.")
        assert Product.objects.get().stock == 2

    def test_a_page_that_is_gone_back_to_orders_nothing_more(self) -> None:
        """What was put into the basket since is still there, for its own page to order."""
        product("bell")
        self.client.post("/products/bell/basket/", {"quantity": 1})
        form = {"buyer": "Ada", "idempotency_key": "a-page"}
        first = self.client.post("/checkout/", form)
        self.client.post("/products/bell/basket/", {"quantity": 2})
        assert self.client.post("/checkout/", form)["Location"] == first["Location"]
        assert self.client.get("/basket/").context["basket"].lines.get().quantity == 2
        self.client.post("/checkout/", form | {"idempotency_key": "another"})
        assert Order.objects.count() == 2
        assert Product.objects.get().stock == 0

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
