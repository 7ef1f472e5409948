"""Round 1: everybody wants the last items; the purchase is guarded by an advisory lock."""

from dataclasses import dataclass, replace
from decimal import Decimal

from django.db.models import Sum

from shop.demo.attack import Answers, attack
from shop.demo.play import Run, milliseconds
from shop.demo.stage import Stage
from shop.models import OrderLine, Product


@dataclass(frozen=True, slots=True)
class LastItems:
    title = "The last items"
    guard = 'advisory_lock("inventory", sku)'

    def unguarded(self, stage: Stage, attempt: int) -> Run:
        """Attack without the lock; each further attempt brings more buyers."""
        harder = replace(stage.load, visits=stage.load.visits * attempt)
        return self._run(replace(stage, load=harder), f"off-{attempt}", guarded=False)

    def guarded(self, stage: Stage) -> Run:
        return self._run(stage, "on", guarded=True)

    def _run(self, stage: Stage, name: str, *, guarded: bool) -> Run:
        product = Product.objects.create(
            sku=f"last-items-{stage.run}-{name}",
            name=f"Ticket, locks {name.partition('-')[0]}",
            description="The last concert of the tour. Everybody wants to go.",
            price=Decimal("49.00"),
            stock=stage.stock,
        )
        label = "guard on " if guarded else "guard off"
        with (
            stage.attacked_site("SHOP_LOCKING", guarded=guarded) as address,
            stage.report.progress(label, stage.load, crowd="buyers", good="sold") as on_answer,
        ):
            answers = attack("buyers", address, product.sku, stage.load, on_answer)
        return _judge(product, stage.stock, answers)


def _judge(product: Product, start: int, answers: Answers) -> Run:
    """Compare what the database says afterwards with what was there and what buyers were told."""
    product.refresh_from_db()
    lines = OrderLine.objects.filter(product=product)
    sold = lines.aggregate(sold=Sum("quantity", default=0))["sold"]
    busy = answers.count("busy")
    demand = min(start, len(answers.all))
    return Run(
        figures={
            "requests": str(len(answers.all)),
            "stock at start": str(start),
            "sold": str(sold),
            "left": str(product.stock),
            "oversold": str(max(sold - start, 0)),
            "refused, sold out": str(answers.count("sold out")),
            "refused, busy": str(busy),
            "failed": str(answers.count("failed")),
            "latency p50 / p99": milliseconds(answers.latency),
            "lock wait p50 / p99": milliseconds(answers.wait),
        },
        invariants={
            "stock never below 0": product.stock >= 0,
            "nothing sold twice": sold <= start,
            "sold + left = stock at start": sold + product.stock == start,
            "each confirmation has its order": lines.count() == answers.count("sold"),
        },
        # A site that refuses everybody keeps every invariant, and proves nothing.
        worked=answers.count("failed") == 0 and (busy > 0 or sold >= demand) and sold > 0,
        lost=f"{max(sold - start, 0)} items oversold",
    )
