"""The stock sync: one elected worker adds the warehouse's deliveries to the stock, in their order.

The warehouse numbers its deliveries, and the shop remembers up to which number it has counted. Two
workers that read the same number would count the same deliveries twice. One worker alone would be
missing when its machine is. So all machines run this, ``leadership`` elects one of them, and the
others stand by: the next one leads at once when the leader is told to stop, and after the ttl when
it died or froze.

A leader that was frozen until another one was elected may go on with deliveries that it has read
long ago. So it counts under ``term.guard()``, where the database refuses it unless its term lasts
still, and elects nobody else before the commit.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event

from django.conf import settings
from django.db import transaction

from django_dblock import LockTimeout, leadership
from django_dblock.coordination.leadership import Term
from shop.models import Delivery, Product, StockSync
from shop.purchase import stock_lock

BATCH = 20
PAUSE = 0.05  # seconds, when no delivery has come, or a product is being sold


def follow(worker: str, *, stop: Event, say: Callable[[str], object]) -> int:
    """Count deliveries whenever this worker is elected; return how many it has counted.

    Args:
        worker: a name for people.
        stop: ends it after the batch in hand, and at once while it stands by.
        say: is told of each term that begins or is lost.
    """
    total = 0
    doing = {"worker": worker}
    ttl = settings.SHOP_STOCK_TTL
    for term in leadership("stock-sync", ttl=ttl, stop=stop, metadata=doing):
        say(f"{worker} leads, with token {term.token}.")
        with term:  # a term that was lost ends the block, and the loop campaigns again
            while not stop.is_set():
                term.check()
                counted = count_next(term)
                total += counted
                if not counted:
                    time.sleep(PAUSE)
        if term.lost:
            say(f"{worker} has lost the term with token {term.token}.")
    return total


def count_next(term: Term) -> int:
    """Add the next deliveries to the stock; return how many there were.

    Raises:
        LockLost: the term is over. Nothing was counted.
    """
    sync, _ = StockSync.objects.get_or_create(name="warehouse")
    batch = after(sync.position)
    if not batch:
        return 0
    try:
        with _counting(term), stock_lock(*{delivery.product.sku for delivery in batch}):
            for delivery in batch:
                _add(delivery)
            sync.position = batch[-1].number
            sync.token = term.token
            sync.save()
    except LockTimeout:  # buyers hold a product; the deliveries stay the next ones
        return 0
    return len(batch)


def after(position: int) -> list[Delivery]:
    """Read the deliveries that follow a number, up to the first one that has not come yet."""
    come = Delivery.objects.filter(number__gt=position).select_related("product")[:BATCH]
    return [
        delivery for number, delivery in enumerate(come, position + 1) if delivery.number == number
    ]


def _add(delivery: Delivery) -> None:
    product = Product.objects.filter(pk=delivery.product_id)
    stock = product.values_list("stock", flat=True).get()  # under the lock, as buyers read it
    product.update(stock=stock + delivery.quantity)


def _counting(term: Term) -> AbstractContextManager[object]:
    """Open the transaction that counts a batch.

    With ``SHOP_FENCING`` off it is just that, and being elected is like having set a key that
    expires (``SET NX PX``): all that the two tests of a frozen leader differ in.
    """
    return term.guard() if settings.SHOP_FENCING else transaction.atomic()
