"""Selling: the one place where stock and orders change together, under a lock for each product.

It reads the stock in Python, decides, and writes it back. For one column of one row an
``UPDATE … SET stock = stock - 1 WHERE stock >= 1`` would do without a lock; but a real shop's
"is there enough?" soon asks reservations, suppliers, and rules in code, over several tables, and
no single statement answers that. So here it is done the way it ends up everywhere; between the
read and the write, without the lock, others read the same stock and sell the same item.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from django.conf import settings
from django.db import transaction

from django_dblock import advisory_lock, advisory_locks
from shop.models import Basket, Order, OrderLine, Product
from shop.outbox import confirm


class SoldOut(Exception):
    """There is less of a product than was asked for. Nothing was sold."""

    def __init__(self, product: Product, wanted: int) -> None:
        if product.stock == 0:
            super().__init__(f"{product.name} is sold out.")
        else:
            super().__init__(f"Only {product.stock} of {product.name} left, not {wanted}.")
        self.sku = product.sku
        self.left = product.stock


class EmptyBasket(Exception):
    """There is nothing in the basket, or no longer."""

    def __init__(self) -> None:
        super().__init__("The basket is empty.")


def stock_lock(*skus: str) -> AbstractContextManager[Any]:
    """One seller at a time for each of these products, and a transaction around the block.

    With ``SHOP_LOCKING`` off it is the transaction alone: all that the demo's two runs differ in.
    """
    if not settings.SHOP_LOCKING:
        return transaction.atomic()
    if len(skus) == 1:
        return advisory_lock("inventory", skus[0])
    return advisory_locks([("inventory", sku) for sku in skus])


def buy(sku: str, quantity: int, buyer: str) -> Order:
    """Sell some of one product.

    Raises:
        SoldOut: there is less of it than that.
        Product.DoesNotExist: there is no such product.
        LockTimeout: too many others are buying it right now.
    """
    with stock_lock(sku):
        return _sell({sku: quantity}, buyer)


def buy_basket(basket_id: int, buyer: str) -> Order:
    """Sell everything in a basket, or nothing of it, and empty it.

    Raises:
        EmptyBasket: there is nothing in it; perhaps another tab was faster.
        SoldOut, LockTimeout: as in :func:`buy`.
    """
    with transaction.atomic():
        # The basket is a row that exists and is ours to change: its own lock is the right one.
        basket = Basket.objects.select_for_update().filter(pk=basket_id).first()
        lines = basket.lines.values_list("product__sku", "quantity") if basket else ()
        wanted = dict(lines)
        if basket is None or not wanted:
            raise EmptyBasket
        # All products at once: one by one, two baskets could wait for each other.
        with stock_lock(*wanted):
            order = _sell(wanted, buyer)
        basket.lines.all().delete()
        return order


def _sell(wanted: Mapping[str, int], buyer: str) -> Order:
    if any(quantity < 1 for quantity in wanted.values()):
        raise ValueError(f"Nobody can buy less than one: {wanted!r}")
    products = {product.sku: product for product in Product.objects.filter(sku__in=wanted)}
    total = 0
    for sku, quantity in wanted.items():
        if sku not in products:
            raise Product.DoesNotExist(f"There is no product {sku!r}.")
        if products[sku].stock < quantity:
            raise SoldOut(products[sku], quantity)
        total += quantity * products[sku].price
    order = Order.objects.create(buyer=buyer, total=total)
    confirm(order)
    for sku, quantity in wanted.items():
        product = products[sku]
        OrderLine.objects.create(
            order=order, product=product, quantity=quantity, price=product.price
        )
        # Not by save(), which would compare: here the lock has seen to it that nobody wrote the
        # stock since it was read, and a new description meanwhile is no reason not to sell. The
        # version is bumped all the same: an open stock form must notice what was sold under it.
        Product.objects.filter(pk=product.pk).update(stock=product.stock - quantity)
    return order
