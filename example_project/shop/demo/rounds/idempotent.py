"""Round 4: payments over a bad line, several times at once, while the site's workers are killed.

Each payer sends the same payment one to five times at once, through a proxy that loses requests and
answers, and sends it again until there is an answer. Meanwhile workers of the site are killed, some
of them between the acquirer's booking and the shop's record. Then the acquirer's books, which no
transaction of ours has reached, are compared with the shop's.
"""

import json
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from acquirer.books import Books
from django.db.models import QuerySet, Sum
from django.urls import reverse

from django_dblock import IdempotencyKey
from shop.demo.attack import Answer, Answers, Load, attack
from shop.demo.kills import Kills
from shop.demo.payers import MOST_COPIES
from shop.demo.play import Run, milliseconds
from shop.demo.site import running_acquirer, running_proxy
from shop.demo.stage import Stage
from shop.models import Order, Payment
from shop.payments import cents

PAYERS = 4  # of each process; each has up to five requests on their way
LEASE = 1  # second: after it, a payment whose worker was killed is taken over
DELAY = 0.02  # seconds between the acquirer's booking and its answer, a bank being no faster
A_MOMENT = 100  # milliseconds, much less than a lease
LOST = {"drop": 0.2, "drop_requests": 0.05}


@dataclass(frozen=True, slots=True)
class Payments:
    title = "Payments"
    guard = "@idempotent"

    def unguarded(self, stage: Stage, attempt: int) -> Run:
        """Pay without it; each further attempt brings more payments."""
        more = replace(stage, payments=stage.payments * attempt)
        return self._run(more, f"off-{attempt}", guarded=False)

    def guarded(self, stage: Stage) -> Run:
        return self._run(stage, "on", guarded=True)

    def _run(self, stage: Stage, name: str, *, guarded: bool) -> Run:
        load = Load(stage.payments, stage.load.processes, PAYERS)
        label = "guard on " if guarded else "guard off"
        stage.report.say(
            f"{label}: each order is paid by 1 to {MOST_COPIES} requests at once, over a line "
            f"that loses {LOST['drop_requests']:.0%} of them, and {LOST['drop']:.0%} of the answers"
        )
        with tempfile.TemporaryDirectory(dir=stage.folder) as folder:
            books, orders = Path(folder, "charges.sqlite3"), Path(folder, "orders.json")
            workers = Path(folder, "workers")
            workers.mkdir()
            references = _order(orders, load)
            kills = Kills(workers, load.visits, name)
            with (
                running_acquirer(books, delay=DELAY) as acquirer,
                stage.attacked_site(
                    "SHOP_IDEMPOTENCY",
                    guarded=guarded,
                    ACQUIRER_URL=acquirer,
                    DBLOCK_IDEMPOTENCY_LEASE=str(LEASE),
                    SHOP_WORKERS_FOLDER=str(workers),
                ) as site,
                running_proxy(site, seed=name, **LOST) as address,
                stage.report.progress(label, load, crowd="payments", good="paid") as on_answer,
            ):

                def one_more(answer: Answer) -> None:
                    on_answer(answer)
                    if kills.on_answer():
                        stage.report.say(f"{label}: a worker of the site is killed, by SIGKILL")

                answers = attack("payers", address, str(orders), load, one_more)
            charges = Books(books).charges()
        return _judge(references, charges, answers, kills.done)


def _order(file: Path, load: Load) -> list[str]:
    """Place an order for each payer, and write down whose is which; return their references."""
    dice = random.Random(1)
    orders = {
        f"payers-{process}-{number}": Order(
            buyer=f"Payer {process}-{number}", total=Decimal(dice.randint(1, 99_999)) / 100
        )
        for process, share in enumerate(load.shares(), 1)
        for number in range(share)
    }
    Order.objects.bulk_create(orders.values())
    told = {
        payer: {"reference": str(order.reference), "amount": str(order.total)}
        for payer, order in orders.items()
    }
    file.write_text(json.dumps(told))
    return [str(order.reference) for order in orders.values()]


def _judge(
    references: list[str], charges: list[dict[str, object]], answers: Answers, killed: int
) -> Run:
    """Compare the acquirer's books with the shop's, to the cent."""
    orders = Order.objects.filter(reference__in=references)
    payments = Payment.objects.filter(order__in=orders)
    ordered = orders.aggregate(sum=Sum("total"))["sum"]
    recorded = payments.aggregate(sum=Sum("amount", default=0))["sum"]
    charged = Decimal(sum(charge["amount"] for charge in charges)) / 100
    each = Counter(charge["reference"] for charge in charges)
    booked = sorted((charge["id"], charge["reference"], charge["amount"]) for charge in charges)
    known = set(payments.values_list("charge_id", flat=True))
    unknown = {charge["id"] for charge in charges} - known
    keys = IdempotencyKey.objects.filter(path__in=_addresses(references))
    told_one = sum(answer.different == 1 for answer in answers.all)
    paid = answers.count("paid")
    return Run(
        figures={
            "orders": str(len(references)),
            "requests to pay them": str(sum(answer.copies for answer in answers.all)),
            "sent again, lost or told to wait": str(answers.retried),
            "workers killed": str(killed),
            "begun, and finished by a retry": str(_taken_over(keys)),
            "orders charged more than once": str(sum(number > 1 for number in each.values())),
            "charges in the acquirer's books": str(len(charges)),
            "charges in the shop's books": str(len(known)),
            "charges the shop knows nothing of": str(len(unknown)),
            "ordered": str(ordered),
            "charged, in the acquirer's books": str(charged),
            "paid, in the shop's books": str(recorded),
            "charged too much": str(charged - ordered),
            "failed": str(len(answers.all) - paid),
            "latency p50 / p99": milliseconds(answers.latency),
        },
        invariants={
            "charges = orders": each == Counter(references),
            "both books agree to the cent": booked == _shops_books(payments)
            and charged == recorded == ordered,
            "each payment has one answer": told_one == len(answers.all),
        },
        # Without a single loss and a single kill it would prove little.
        worked=paid == len(answers.all) and answers.retried > 0 and killed > 0,
        lost=f"{charged - ordered} EUR charged too much",
    )


def _taken_over(keys: QuerySet[IdempotencyKey]) -> int:
    """Count the requests that a second run finished.

    A claim's token is the server's clock in milliseconds, so that of a first claim is the moment
    in which its row was made.
    """
    rows = keys.values_list("token", "created_at")
    return sum(token - made.timestamp() * 1000 > A_MOMENT for token, made in rows)


def _shops_books(payments: QuerySet[Payment]) -> list[tuple[str, str, int]]:
    """What the shop knows of its charges, as the acquirer has them."""
    return sorted(
        (payment.charge_id, str(payment.order.reference), cents(payment.amount))
        for payment in payments.select_related("order")
    )


def _addresses(references: list[str]) -> list[str]:
    return [reverse("shop:api-payments", args=[reference]) for reference in references]
