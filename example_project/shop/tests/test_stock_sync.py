"""Two workers follow the warehouse: one leads, the other takes over; nothing is counted twice."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from threading import Event

from django.db import connection
from django.test import TestCase, TransactionTestCase

from django_dblock import leader
from shop import stock_sync
from shop.demo.database import address_of
from shop.demo.stage import GUARDS
from shop.demo.workers import (
    Worker,
    first_held_up,
    nobody_reads,
    syncing,
    until,
    until_answered,
)
from shop.models import Delivery, Product, StockSync
from shop.purchase import buy
from shop.tests.helpers import held_elsewhere, product

LONG = 60  # seconds: longer than a test waits for anything


def delivered(numbers: Iterable[int]) -> None:
    bell = Product.objects.get()
    Delivery.objects.bulk_create(
        Delivery(number=number, product=bell, quantity=1) for number in numbers
    )


def follow(*, until_position: int) -> list[str]:
    """Follow the warehouse in this process; return what was said."""
    stop, said = Event(), []
    count = stock_sync.count_next

    def and_look(term: object) -> int:
        try:
            return count(term)
        finally:
            if StockSync.objects.get().position >= until_position:
                stop.set()

    stock_sync.count_next = and_look
    try:
        said.append(str(stock_sync.follow("ann", stop=stop, say=said.append)))
    finally:
        stock_sync.count_next = count
    return said


class Counting(TestCase):
    def setUp(self) -> None:
        product(stock=3)

    def test_deliveries_are_counted_up_to_the_first_that_is_missing(self) -> None:
        delivered([1, 2, 4])
        [begun, counted] = follow(until_position=2)
        assert begun.startswith("ann leads, with token ")
        assert counted == "2"
        assert [each.number for each in stock_sync.after(2)] == []
        delivered([3])
        assert [each.number for each in stock_sync.after(2)] == [3, 4]
        assert Product.objects.get().stock == 5

    def test_what_buyers_hold_is_counted_later(self) -> None:
        delivered([1])
        with self.settings(DBLOCK_ADVISORY_TIMEOUT=0.05), held_elsewhere("inventory", "bell"):
            sync = StockSync.objects.create(name="warehouse")
            assert follow(until_position=0)[-1] == "0"
        assert follow(until_position=1)[-1] == "1"
        sync.refresh_from_db()
        assert (sync.position, Product.objects.get().stock) == (1, 4)


class TwoWorkers(TransactionTestCase):
    """Real processes, of which the leader is stopped, killed or frozen."""

    def setUp(self) -> None:
        product(stock=3)
        delivered(range(1, 4))

    def workers(self, *, ttl: float, fencing: bool = True) -> AbstractContextManager[list[Worker]]:
        env = GUARDS | {"SHOP_STOCK_TTL": str(ttl), "SHOP_FENCING": str(fencing)}
        url = address_of(connection.settings_dict["NAME"], os.environ["DATABASE_URL"])
        return syncing(["ann", "bob"], url, env)

    def test_a_leader_that_is_told_to_stop_hands_over_at_once(self) -> None:
        with self.workers(ttl=LONG) as both:
            first, second = by_role(both)
            until(lambda: counted(3), "the deliveries are not counted")
            first.process.terminate()
            assert first.ended() == 0
            assert first.said == f"{first.name} has counted 3 deliveries."
            until(lambda: leads(second), "the standby was not elected")

    def test_a_leader_that_is_killed_is_replaced_after_its_ttl(self) -> None:
        with self.workers(ttl=1) as both:
            first, second = by_role(both)
            until(lambda: counted(3), "the deliveries are not counted")
            first.kill()
            until(lambda: leads(second), "the standby was not elected")
            buy("bell", 6, "Ada")
            delivered([4])
            until(lambda: counted(4), "the standby does not count")
        assert Product.objects.get().stock == 1

    def test_a_frozen_leader_counts_nothing_after_its_term(self) -> None:
        sync = self.run_with_a_frozen_leader(fencing=True)
        assert sync.position == 6
        assert Product.objects.get().stock == 3 + 6

    def test_without_the_guard_it_counts_deliveries_again(self) -> None:
        """The twin of the test above, which would be worth nothing if this did not happen."""
        self.run_with_a_frozen_leader(fencing=False)
        assert Product.objects.get().stock > 3 + 6

    def run_with_a_frozen_leader(self, *, fencing: bool) -> StockSync:
        """Freeze the leader with deliveries in its hands, until the other has counted them."""
        with self.workers(ttl=1, fencing=fencing) as both:
            with nobody_reads("shop_delivery"):
                frozen = first_held_up(both)
                frozen.freeze()
            until_answered(frozen)
            [other] = [each for each in both if each is not frozen]
            until(lambda: leads(other), "the standby was not elected")
            delivered(range(4, 7))
            until(lambda: counted(6), "the standby does not count")
            token = StockSync.objects.get().token
            frozen.thaw()
            until(lambda: lost(frozen), "the frozen leader goes on")
            assert leads(other)
            for worker in (other, frozen):
                worker.process.terminate()
                assert worker.ended() == 0
        sync = StockSync.objects.get()
        assert (sync.token == token) or not fencing
        return sync


def by_role(workers: list[Worker]) -> tuple[Worker, Worker]:
    """Return who leads, and who stands by."""
    [first] = until(lambda: [each for each in workers if leads(each)], "nobody leads")
    [second] = [each for each in workers if each is not first]
    return first, second


def leads(worker: Worker) -> list[bool]:
    found = leader("stock-sync")
    return [True] if found and found.metadata["worker"] == worker.name else []


def counted(position: int) -> list[StockSync]:
    return list(StockSync.objects.filter(position=position))


def lost(worker: Worker) -> list[bool]:
    return [True] if f"{worker.name} has lost the term" in worker.said else []
