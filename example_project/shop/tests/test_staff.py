"""What staff edit, while others sell and edit."""

from django.contrib.auth import get_user_model
from django.db.models.signals import pre_save
from django.test import TestCase, modify_settings, override_settings
from django.urls import reverse

from shop.models import Product, Settlement
from shop.purchase import buy
from shop.tests.helpers import filled, held_elsewhere, product


class Staff(TestCase):
    def sign_in(self) -> None:
        self.client.force_login(get_user_model().objects.create_superuser("clerk"))


class StockPage(Staff):
    def setUp(self) -> None:
        product(stock=10)

    def saved(self) -> tuple[str, int]:
        bell = Product.objects.get()
        return str(bell.price), bell.stock

    def open(self):
        self.sign_in()
        return self.client.get("/stock/bell/")

    def save(self, page, **changes: str):
        return self.client.post("/stock/bell/", filled(page, **changes))

    def test_it_and_settlements_are_for_staff(self) -> None:
        for address in ("/stock/", "/stock/bell/", "/settlements/"):
            response = self.client.get(address)
            self.assertRedirects(response, f"{reverse('admin:login')}?next={address}")

    def test_the_settlements_page_shows_the_token_of_the_lease(self) -> None:
        self.sign_in()
        Settlement.objects.create(date="2026-01-31", amount="30.50", payments=2, token=1234567)
        self.assertContains(self.client.get("/settlements/"), "1234567")

    def test_staff_change_price_and_stock(self) -> None:
        page = self.open()
        self.assertContains(self.client.get("/stock/"), "bell")
        response = self.client.post("/stock/bell/", filled(page, price="5", stock="7"), follow=True)
        self.assertContains(response, "Bell: 7 in stock.")
        assert self.saved() == ("5.00", 7)

    def test_what_is_wrong_is_said_and_nothing_saved(self) -> None:
        wrong = self.save(self.open(), price="0", stock="-1")
        self.assertContains(wrong, "greater than or equal to 0.01", status_code=400)
        assert self.saved() == ("9.50", 10)

    def test_a_form_that_does_not_say_what_it_showed_is_refused(self) -> None:
        page = self.open()
        response = self.save(page, version_token="")
        self.assertContains(response, "without the version", status_code=400)
        assert self.saved() == ("9.50", 10)

    def test_what_is_sold_meanwhile_is_not_put_back_on_the_shelf(self) -> None:
        """A new price by a form that was opened before the sale, and that shows the old stock."""
        page = self.open()
        buy("bell", 3, "Ada")
        conflict = self.save(page, price="12.00")
        self.assertContains(conflict, "Somebody else has changed this", status_code=409)
        self.assertTemplateUsed(conflict, "shop/stock_conflict.html")
        assert self.saved() == ("9.50", 7)
        self.assertRedirects(self.save(conflict), "/stock/")
        assert self.saved() == ("12.00", 7)

    def test_a_delivery_is_added_to_what_is_left_after_the_sale(self) -> None:
        page = self.open()
        buy("bell", 3, "Ada")
        conflict = self.save(page, stock="15")
        self.assertContains(
            conflict, "by +5, others meanwhile by \N{MINUS SIGN}3: 12 has both", status_code=409
        )
        self.assertRedirects(self.save(conflict), "/stock/")
        assert self.saved() == ("9.50", 12)

    def test_less_than_nothing_is_never_proposed(self) -> None:
        page = self.open()
        buy("bell", 8, "Ada")
        assert filled(self.save(page, stock="4"))["stock"] == "0"

    def test_the_second_clerk_decides_field_by_field(self) -> None:
        page = self.open()
        self.save(page, price="12.00", stock="20")
        conflict = self.save(page, price="11.00", stock="15")
        for shown in ("9.50", "11.00", "12.00", "both of you changed it"):
            self.assertContains(conflict, shown, status_code=409)
        self.save(conflict, stock="14", version_choice_price="theirs", version_choice_stock="mine")
        assert self.saved() == ("12.00", 14)

    def test_a_third_who_is_faster_than_the_decision_is_noticed_too(self) -> None:
        page = self.open()
        Product.objects.update(price=7)
        conflict = self.save(page, price="11.00")
        Product.objects.update(price=8)
        again = self.save(conflict, version_choice_price="mine")
        self.assertContains(again, "8.00", status_code=409)
        assert self.saved() == ("8.00", 10)

    def test_a_product_that_is_gone_is_said_to_be(self) -> None:
        page = self.open()
        Product.objects.all().delete()
        assert self.save(page, price="11.00").status_code == 404

    def test_one_that_goes_in_the_moment_of_the_save_as_well(self) -> None:
        page = self.open()

        def delete(**_: object) -> None:
            Product.objects.all().delete()

        pre_save.connect(delete, sender=Product)
        self.addCleanup(pre_save.disconnect, delete, sender=Product)
        response = self.save(page, price="11.00")
        self.assertContains(response, "has deleted this", status_code=409)
        self.assertContains(response, "11.00", status_code=409)
        self.assertNotContains(response, "Save this", status_code=409)

    @override_settings(DBLOCK_ADVISORY_TIMEOUT=0)
    def test_a_save_waits_for_the_purchase_that_has_read_the_stock(self) -> None:
        page = self.open()
        with held_elsewhere("inventory", "bell"):
            assert self.save(page, stock="11").status_code == 503

    @modify_settings(MIDDLEWARE={"append": "shop.middleware.WithoutVersions"})
    def test_without_versions_the_later_clerk_overwrites_the_earlier(self) -> None:
        page = self.open()
        self.save(page, price="12.00", stock="20")
        self.assertRedirects(self.save(page, price="11.00"), "/stock/")
        assert self.saved() == ("11.00", 10)


class Admin(Staff):
    def test_it_never_writes_back_a_stock_that_it_has_read(self) -> None:
        bell = product(stock=3)
        self.sign_in()
        address = reverse("admin:shop_product_change", args=[bell.pk])
        page = self.client.get(address)
        buy("bell", 1, "Ada")
        conflict = self.client.post(address, filled(page, price="1.00"))
        self.assertContains(conflict, "Somebody else", status_code=409)
        bell.refresh_from_db()
        assert (bell.stock, str(bell.price)) == (2, "9.50")
        assert self.client.post(address, filled(conflict)).status_code == 302
        bell.refresh_from_db()
        assert (bell.stock, str(bell.price)) == (2, "1.00")

    def test_it_shows_orders_and_changes_none(self) -> None:
        product()
        order = buy("bell", 1, "Ada")
        self.sign_in()
        self.assertContains(self.client.get("/admin/shop/order/"), order.number)
        address = reverse("admin:shop_order_change", args=[order.pk])
        self.assertContains(self.client.get(address), "Ada")
        assert self.client.post(address, {"buyer": "Eve"}).status_code == 403
        for model in ("payment", "settlement"):
            assert self.client.get(f"/admin/shop/{model}/").status_code == 200
