"""Round 5: workers drain the outbox, and one is frozen, one is killed, and one comes late.

Without partitions, each bucket is claimed by a lock that only expires: the frozen worker wakes up
with a batch in its hands that another one has sent meanwhile, and records it again.
"""

from dataclasses import dataclass
from decimal import Decimal

from django.db.models import Count

from shop.demo.play import Run
from shop.demo.stage import GUARDS, Stage
from shop.demo.workers import draining, first_held_up, nobody_reads, until, until_answered
from shop.models import Mail, MailRecord, Order, OutboxClaim
from shop.outbox import confirm

MAILS = 400
WORKERS = 3
TTL = 1  # second


@dataclass(frozen=True, slots=True)
class Outbox:
    title = "An outbox and its workers"
    guard = 'partitions("outbox"), and their guard()'

    def unguarded(self, stage: Stage, attempt: int) -> Run:  # noqa: ARG002 - no second attempt is larger
        """Drain it by locks that expire."""
        return self._run(stage, guarded=False)

    def guarded(self, stage: Stage) -> Run:
        return self._run(stage, guarded=True)

    def _run(self, stage: Stage, *, guarded: bool) -> Run:
        Mail.objects.all().delete()
        OutboxClaim.objects.all().delete()
        orders = Order.objects.bulk_create(
            Order(buyer=f"Buyer {number}", total=Decimal(1)) for number in range(MAILS)
        )
        for order in orders:
            confirm(order)
        label = "guard on " if guarded else "guard off"
        say = stage.report.say
        say(f"{label}: {WORKERS} workers, {MAILS} mails …")
        ttl = {"SHOP_OUTBOX_TTL": str(TTL)}
        env = GUARDS | ttl | stage.switched("SHOP_PARTITIONS", guarded=guarded)
        names = [f"worker-{number}" for number in range(1, WORKERS + 1)]
        with draining(names, stage.database_url, env) as workers:
            with nobody_reads("shop_order"):
                frozen = first_held_up(workers)
                frozen.freeze()
            until_answered(frozen)
            say(f"{label}: {frozen.name} has read a batch, and is stopped")
            killed = next(each for each in workers if each is not frozen)
            killed.kill()
            say(f"{label}: {killed.name} is killed")
            with draining(["latecomer"], stage.database_url, env) as late:
                until(_all_recorded, "The outbox is not emptied.")
                say(f"{label}: all mails are sent, by the others and by {late[0].name}")
                frozen.thaw()
                statuses = [each.ended() for each in (*workers, *late) if each is not killed]
        run = _judge(statuses, late=late[0].name)
        Order.objects.filter(pk__in=[order.pk for order in orders]).delete()
        return run


def _all_recorded() -> list[bool]:
    return [True] if not Mail.objects.filter(sent_at=None).exists() else []


def _judge(statuses: list[int], *, late: str) -> Run:
    records = MailRecord.objects.values("mail").annotate(times=Count("pk"))
    twice = sum(record["times"] > 1 for record in records)
    by_late = MailRecord.objects.filter(worker=late).count()
    return Run(
        figures={
            "mails": str(MAILS),
            "recorded as sent": str(MailRecord.objects.count()),
            "recorded twice": str(twice),
            "recorded by the latecomer": str(by_late),
        },
        invariants={
            "each mail is recorded": len(records) == MAILS,
            "each mail is recorded once": twice == 0,
        },
        worked=len(records) == MAILS and all(status == 0 for status in statuses),
        lost=f"{twice} mails sent twice",
    )
