"""Several workers settle one day: one at a time, and none writes whose lease has been taken."""

import datetime as dt
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal
from os import EX_TEMPFAIL, environ
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from django.core.management import CommandError
from django.db import connection
from django.test import TransactionTestCase, override_settings

from django_dblock import fenced_lock, force_release
from django_dblock.fencing import store as table
from django_dblock.fencing.store import Refusal
from django_dblock.inspect import fenced_leases
from shop import settlement
from shop.demo.attack import Load
from shop.demo.database import address_of
from shop.demo.rounds.fenced import ThreeWorkers
from shop.demo.stage import Stage
from shop.models import Payment, Settlement
from shop.tests.settling import YESTERDAY, OnOneDay, paid, settle, small_batches


class Together(OnOneDay, TransactionTestCase):
    """Workers with a connection each."""

    def setUp(self) -> None:
        super().setUp()
        noon = dt.datetime.combine(YESTERDAY, dt.time(12), dt.UTC)
        for amount in ("10.00", "20.50", "40.00"):
            paid(amount, noon)

    def assert_booked_once(self) -> None:
        booked = Settlement.objects.get()
        assert (booked.amount, booked.payments) == (Decimal("70.50"), 3)
        assert Payment.objects.filter(settlement=booked).count() == 3

    def test_the_second_of_two_is_told_who_is_at_it_and_can_be_tried_later(self) -> None:
        with fenced_lock("settlement", ttl=60) as lock:
            with self.assertRaisesMessage(CommandError, "another worker is settling: ") as caught:
                settle()
            assert f"token {lock.token}" in str(caught.exception)
            assert caught.exception.returncode == EX_TEMPFAIL
            assert not Settlement.objects.exists()
        assert "3 payments, 70.50 in all; booked." in settle()

    def test_of_two_at_once_one_books_and_the_other_finds_it_booked(self) -> None:
        """The second comes while the first is between reading and booking, and waits."""
        second: list[str] = []
        waiting = threading.Thread(target=elsewhere(lambda: second.append(settle(wait=30))))
        refused = threading.Event()

        def come() -> None:
            waiting.start()
            assert refused.wait(20), "the second did not come"

        with telling(refused), after_reading(come):
            assert "booked." in settle()
        waiting.join()
        assert second == [f"{YESTERDAY}: 3 payments, 70.50 in all; was booked before.\n"]
        self.assert_booked_once()

    def test_while_it_runs_the_lease_is_listed_with_its_day(self) -> None:
        seen: list[object] = []
        with after_reading(lambda: seen.extend(fenced_leases())):
            settle()
        [lease] = seen
        assert (lease.name, lease.metadata) == ("settlement", {"day": YESTERDAY.isoformat()})
        assert fenced_leases() == []

    def test_a_worker_whose_lease_was_taken_while_it_read_books_nothing(self) -> None:
        """It can't know yet: the database refuses the booking."""
        with after_reading(taken_over), self.assertRaisesMessage(CommandError, "was lost"):
            settle()
        self.assert_booked_once()

    @override_settings(SHOP_FENCING=False)
    def test_without_the_guard_it_writes_over_its_successors_total(self) -> None:
        """The twin of the test above, which would be worth nothing if this did not happen."""
        lost = self.assertRaisesMessage(CommandError, "was lost")  # noticed, but too late
        with small_batches(), after_reading(taken_over), lost:
            settle()
        assert Settlement.objects.get().amount < Decimal("70.50")
        assert not Payment.objects.filter(settlement=None).exists()

    def test_a_worker_that_is_taken_over_between_bookings_keeps_those_it_made(self) -> None:
        with (
            small_batches(),
            after_reading(taken_over, calls=2),
            self.assertRaisesMessage(CommandError, "was lost"),
        ):
            settle()
        self.assert_booked_once()


def after_reading(act: Callable[[], object], *, calls: int = 1) -> AbstractContextManager[Any]:
    """Let something happen between the reading of a batch, the first or a later one, and its
    booking; once."""
    read = settlement.unbooked
    left = iter(range(calls - 1, -1, -1))

    def and_then(day: dt.date) -> list[Payment]:
        batch = read(day)
        if next(left, None) == 0:
            act()
        return batch

    return mock.patch.object(settlement, "unbooked", and_then)


def taken_over() -> None:
    """What is the case when a frozen worker goes on: another has had the lease, and finished."""
    force_release("settlement")
    said: list[str] = []
    other = threading.Thread(target=elsewhere(lambda: said.append(settle())))
    other.start()
    other.join()
    assert "3 payments, 70.50 in all; booked." in said[0]


def elsewhere(act: Callable[[], object]) -> Callable[[], None]:
    """The same on a connection of the thread's own, which it closes."""

    def run() -> None:
        try:
            act()
        finally:
            connection.close()

    return run


def telling(refused: threading.Event) -> AbstractContextManager[Any]:
    """Let the event tell that somebody has asked for a lease and was refused."""
    ask = table.acquire

    def and_tell(*arguments: Any) -> Any:
        answer = ask(*arguments)
        if isinstance(answer, Refusal):
            refused.set()
        return answer

    return mock.patch.object(table, "acquire", and_tell)


class Frozen(TransactionTestCase):
    """The demo's round: three processes, one of which is stopped past its ttl and goes on."""

    def setUp(self) -> None:
        self.said: list[str] = []
        self.stage = Stage(
            run="test",
            load=Load(1, 1, 1),
            stock=1,
            edits=1,
            payments=1,
            workers=1,
            database_url=address_of(connection.settings_dict["NAME"], environ["DATABASE_URL"]),
            folder=Path(),
            report=SimpleNamespace(say=self.said.append),
        )

    def test_a_holder_that_was_stopped_past_its_ttl_is_refused_at_its_next_booking(self) -> None:
        run = ThreeWorkers().guarded(self.stage)
        assert run.kept, run
        assert run.worked, self.said

    def test_without_the_guard_it_writes_over_what_its_successor_has_booked(self) -> None:
        run = ThreeWorkers().unguarded(self.stage, 1)
        assert not any(run.invariants.values()), run
