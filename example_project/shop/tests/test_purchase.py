# ruff: noqa: PT027 - Django's own runner runs these, not pytest
import threading

from django.db import connection
from django.db.models.signals import post_save
from django.test import TestCase, TransactionTestCase, override_settings
from django.test.utils import CaptureQueriesContext

from django_dblock import LockTimeout, StaleObject
from shop.models import Basket, BasketLine, Order, Product
from shop.purchase import EmptyBasket, SoldOut, buy, buy_basket
from shop.tests.helpers import held_elsewhere, product


def lock_statements(sent: CaptureQueriesContext) -> list[str]:
    return [query["sql"] for query in sent.captured_queries if "advisory" in query["sql"]]


class Buying(TestCase):
    def test_a_purchase_moves_stock_into_an_order(self) -> None:
        bell = product(stock=3)
        order = buy("bell", 2, "Ada")
        bell.refresh_from_db()
        line = order.lines.get()
        assert (bell.stock, line.quantity, order.total) == (1, 2, 2 * bell.price)

    def test_what_is_not_there_is_not_sold(self) -> None:
        bell = product(stock=1)
        with self.assertRaisesMessage(SoldOut, "Only 1 of Bell left, not 2."):
            buy("bell", 2, "Ada")
        bell.refresh_from_db()
        assert (bell.stock, Order.objects.count()) == (1, 0)

    def test_nobody_buys_nothing_or_what_does_not_exist(self) -> None:
        product()
        with self.assertRaises(ValueError):
            buy("bell", 0, "Ada")
        with self.assertRaises(Product.DoesNotExist):
            buy("whistle", 1, "Ada")

    def test_the_lock_comes_before_the_stock_is_read(self) -> None:
        product()
        with CaptureQueriesContext(connection) as sent:
            buy("bell", 1, "Ada")
        statements = [query["sql"] for query in sent.captured_queries]
        locked = next(i for i, sql in enumerate(statements) if "pg_try_advisory_xact_lock" in sql)
        read = next(i for i, sql in enumerate(statements) if 'FROM "shop_product"' in sql)
        assert locked < read

    def test_a_sale_is_a_new_version_so_an_open_stock_form_notices(self) -> None:
        bell = product(stock=3)
        buy("bell", 1, "Ada")
        bell.price = 5
        with self.assertRaises(StaleObject):
            bell.save()

    def test_what_else_was_changed_meanwhile_does_not_stop_a_sale(self) -> None:
        """A new description between its read and its write; the lock is for the stock alone."""
        product(stock=3)

        def describe(**_: object) -> None:
            Product.objects.update(description="Rings exactly once.")

        post_save.connect(describe, sender=Order)
        self.addCleanup(post_save.disconnect, describe, sender=Order)
        buy("bell", 1, "Ada")
        bell = Product.objects.get()
        assert (bell.stock, bell.description) == (2, "Rings exactly once.")

    @override_settings(SHOP_LOCKING=False)
    def test_the_switch_leaves_out_the_lock_and_nothing_else(self) -> None:
        bell = product(stock=3)
        with CaptureQueriesContext(connection) as sent:
            buy("bell", 1, "Ada")
        bell.refresh_from_db()
        assert bell.stock == 2
        assert lock_statements(sent) == []

    @override_settings(DBLOCK_ADVISORY_TIMEOUT=0)
    def test_a_product_that_somebody_else_is_buying_is_busy(self) -> None:
        product()
        with held_elsewhere("inventory", "bell"), self.assertRaises(LockTimeout):
            buy("bell", 1, "Ada")
        assert not Order.objects.exists()


class BuyingABasket(TestCase):
    def setUp(self) -> None:
        self.products = [product("bell", stock=3), product("rope", stock=1)]
        self.basket = Basket.objects.create()

    def put(self, **quantities: int) -> None:
        for each in self.products:
            if each.sku in quantities:
                BasketLine.objects.create(
                    basket=self.basket, product=each, quantity=quantities[each.sku]
                )

    def stock(self) -> dict[str, int]:
        return dict(Product.objects.values_list("sku", "stock"))

    def test_two_products_are_sold_together_under_one_statement_of_locks(self) -> None:
        self.put(bell=2, rope=1)
        with CaptureQueriesContext(connection) as sent:
            order = buy_basket(self.basket.pk, "Ada")
        assert self.stock() == {"bell": 1, "rope": 0}
        assert order.lines.count() == 2
        assert not self.basket.lines.exists()
        assert len(lock_statements(sent)) == 1

    def test_one_product_sold_out_leaves_all_of_it_unsold(self) -> None:
        self.put(bell=1, rope=2)
        with self.assertRaises(SoldOut):
            buy_basket(self.basket.pk, "Ada")
        assert self.stock() == {"bell": 3, "rope": 1}
        assert self.basket.lines.count() == 2
        assert not Order.objects.exists()

    def test_a_basket_is_sold_once(self) -> None:
        self.put(bell=1)
        buy_basket(self.basket.pk, "Ada")
        with self.assertRaises(EmptyBasket):
            buy_basket(self.basket.pk, "Ada")
        assert self.stock()["bell"] == 2


class BuyingTogether(TransactionTestCase):
    def test_of_many_at_once_only_as_many_buy_as_there_is_stock(self) -> None:
        product(stock=2)
        start, outcomes = threading.Barrier(6), []

        def buyer() -> None:
            start.wait(10)
            try:
                outcomes.append(buy("bell", 1, "Ada"))
            except SoldOut as error:
                outcomes.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=buyer) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(outcome, Order) for outcome in outcomes) == 2
        assert len(outcomes) == 6
        assert Product.objects.get().stock == 0
