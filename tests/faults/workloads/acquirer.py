"""W3 in lease mode: each payment is charged at an acquirer, who keeps books of its own.

The acquirer commits by itself, over a line of its own, to which the same happens as to all others.
As a real one it takes a key, and answers a known key with its first charge.
"""

from collections import Counter, defaultdict
from contextlib import suppress

from django.db import connections, transaction
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, JsonResponse

from django_dblock.signals import idempotent_taken_over
from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.history import FAIL, OK, Operation, asked
from tests.faults.models import Entry
from tests.faults.worker import Worker
from tests.faults.workloads import payments
from tests.faults.workloads.payments import Busy

TAKEN_OVER = True
"""Where no run went on after another, a trial has shown nothing."""

_ORDER, _PAYMENT = 0, 1
"""What an entry's ``change`` says it is."""

_SLOW = 0.05
"""Seconds that the acquirer's answer takes, and what is done with it, each at most."""

_CHARGE = "INSERT INTO faults_charge (key, name) VALUES (%s, %s) ON CONFLICT (key) DO NOTHING"
_CHARGED = "SELECT id FROM faults_charge WHERE key = %s"


def prepare(database: evidence.Connection, trial: str) -> None:
    """The journal is our ledger, and the acquirer's begins empty."""


_taken_over: set[int] = set()
"""The tokens of the claims of this process that went on after another run."""


@receiver(idempotent_taken_over)
def _note(*, token: int, **_: object) -> None:
    _taken_over.add(token)


def settle(request: HttpRequest) -> HttpResponse:
    """The view: an order, written with its step's record; a charge; a payment, with the answer."""
    run = request.idempotency
    if run.token in _taken_over:
        request.worker.history.note("takeover", steps=sorted(run.lease.claim.steps))
    with run.guard():
        order = run.run_step("order", lambda: _entry(request, _ORDER))
    charge = run.run_step("charge", lambda: _charge(request, run.derived_key("charge")))
    request.worker.think(_SLOW)
    with transaction.atomic():
        payment = _entry(request, _PAYMENT)
        return run.complete(JsonResponse(_answer(order, charge, payment), status=201))


def turn(worker: Worker) -> None:
    """Ask until there is an answer: who is told to come again comes again, and takes over."""
    owed = worker.state.setdefault("owed", [])
    again = owed and worker.dice.random() < 0.5
    key = owed.pop(0) if again else _next(worker)
    worker.state["again"] = key
    owed.append(key)  # until there is an answer
    with suppress(Busy):
        payments.turn(worker)
        owed.remove(key)


def _next(worker: Worker) -> str:
    """All have the same list of payments; who takes a dead one's place begins where it was."""
    if "number" not in worker.state:
        done = [int(name.split()[-1]) for name in asked(worker.folder, worker.number)]
        worker.state["number"] = max(done, default=1) - 1
    worker.state["number"] += 1
    return f"{worker.trial} {worker.state['number']}"


def _entry(request: HttpRequest, what: int) -> int:
    return Entry.objects.create(
        operation=request.operation, name=request.name, change=what, left=0,
        token=request.idempotency.token,
    ).pk  # fmt: skip


def _charge(request: HttpRequest, key: str) -> int:
    with connections["acquirer"].cursor() as cursor:
        cursor.execute(_CHARGE, [key, request.name])
        cursor.execute(_CHARGED, [key])
        [number] = cursor.fetchone()
    request.worker.think(_SLOW)
    return number


def _answer(order: int, charge: int, payment: int) -> dict[str, int]:
    return {"order": order, "charge": charge, "payment": payment}


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    """Compare the acquirer's books and ours with each other, and with what was answered."""
    journal = evidence.entries(database, trial)
    charged = Counter(evidence.charges(database, trial))
    orders, payments = (
        Counter(entry.name for entry in journal if entry.change == what)
        for what in (_ORDER, _PAYMENT)
    )
    answers: dict[str, list[str]] = defaultdict(list)
    for operation in history:
        if operation.outcome == OK:
            answers[operation.data["name"]].append(operation.data["body"])
    refused = [operation for operation in history if operation.outcome == FAIL]
    told = {operation.id for operation in refused}
    paid = [entry.operation for entry in journal if entry.change == _PAYMENT]
    return (
        checkers.charges(charged, {*answers, *payments})
        + checkers.charges(orders, {*answers, *payments, *charged})
        + checkers.charges(payments, answers)
        + checkers.replays(answers)
        + checkers.superseded(journal)
        + checkers.outcomes(refused, [number for number in paid if number in told])
    )
