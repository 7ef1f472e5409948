"""Round 3: three workers want to settle one day, and the one that has the lease is frozen.

It has read payments, and is stopped past its ttl. Another takes over and finishes; then the first
goes on, with what it has read long ago. In both runs it holds a lease with a heartbeat, and asks
between its bookings whether it may still trust it; without the guard it is told so after it has
written. Asking earlier would not help: it may be stopped after any question and before any write.
"""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal

from django.db.models import Min, Sum
from django.utils import timezone

from django_dblock import FencedLock
from shop.demo.play import Run
from shop.demo.stage import GUARDS, Stage
from shop.demo.workers import crew, first_held_up, nobody_reads, until_answered
from shop.models import Order, Payment, Settlement
from shop.settlement import BATCH

WORKERS = 3
TTL = 1  # second
PAYMENTS = 3 * BATCH
AMOUNT = Decimal("10.00")


@dataclass(frozen=True, slots=True)
class ThreeWorkers:
    title = "Three settlement workers"
    guard = 'fenced_lock("settlement"), and its guard()'

    def unguarded(self, stage: Stage, attempt: int) -> Run:
        """Settle under the lease alone, which expires and is taken."""
        return self._run(stage, f"off-{attempt}", guarded=False)

    def guarded(self, stage: Stage) -> Run:
        return self._run(stage, "on", guarded=True)

    def _run(self, stage: Stage, name: str, *, guarded: bool) -> Run:
        day = _pay(f"{stage.run}-{name}")
        label = "guard on " if guarded else "guard off"
        say = stage.report.say
        say(f"{label}: {WORKERS} workers, {PAYMENTS} payments …")
        ttl = {"SHOP_SETTLEMENT_TTL": str(TTL)}
        env = GUARDS | ttl | stage.switched("SHOP_FENCING", guarded=guarded)
        with crew(WORKERS, day, stage.database_url, env) as workers:
            with nobody_reads("shop_payment"):
                frozen = first_held_up(workers)
                token = FencedLock.objects.get(name="settlement").token
                frozen.freeze()
            until_answered(frozen)
            say(f"{label}: {frozen.name} has the lease, has read payments, and is stopped")
            others = [each.ended() for each in workers if each is not frozen]
            say(f"{label}: the lease has expired, and the others have settled the day")
            frozen.thaw()
            status = frozen.ended()
            said = frozen.said.removeprefix("CommandError: ")
            say(f"{label}: {frozen.name} goes on, and ends with status {status}: {said}")
        return _judge(day, token, others=others, status=status)


def _pay(run: str) -> dt.date:
    """Make a day with payments, before every day that has any; return it."""
    booked = Settlement.objects.aggregate(first=Min("date"))["first"]
    paid = Payment.objects.aggregate(first=Min("created_at"))["first"]
    known = [timezone.localdate(), booked, paid and timezone.localdate(paid)]
    day = min(each for each in known if each) - dt.timedelta(days=1)
    noon = dt.datetime.combine(day, dt.time(12), timezone.get_current_timezone())
    orders = Order.objects.bulk_create(
        Order(buyer=f"Buyer {number}", total=AMOUNT, created_at=noon)
        for number in range(1, PAYMENTS + 1)
    )
    Payment.objects.bulk_create(
        Payment(order=order, amount=AMOUNT, charge_id=f"demo-{run}-{number}", created_at=noon)
        for number, order in enumerate(orders, 1)
    )
    return day


def _judge(day: dt.date, token: int, *, others: list[int], status: int) -> Run:
    """Compare the settlement with the payments of the day; ``token`` is the frozen worker's."""
    payments = Payment.objects.filter(created_at__date=day)
    paid = payments.aggregate(paid=Sum("amount"))["paid"]
    marked = payments.exclude(settlement=None).count()
    settlement = Settlement.objects.get(date=day)
    stale = settlement.token <= token
    return Run(
        figures={
            "payments of the day": str(PAYMENTS),
            "marked as booked": str(marked),
            "paid": str(paid),
            "settled": str(settlement.amount),
            "lost": str(paid - settlement.amount),
            "total written last by": "the frozen one" if stale else "its successor",
        },
        invariants={
            "settled = paid": settlement.amount == paid,
            "each payment is settled once": settlement.payments == marked == PAYMENTS,
            "no stale write over a newer one": not stale,
        },
        worked=marked == PAYMENTS and others == [0] * (WORKERS - 1) and status != 0,
        lost=f"{paid - settlement.amount} EUR not settled",
    )
