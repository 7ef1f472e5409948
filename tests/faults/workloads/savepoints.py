"""W7: an advisory lock, and inside it savepoints that take further locks and are rolled back."""

from django.db import transaction

from django_dblock import advisory_lock, try_advisory_lock
from tests.faults import evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, Number
from tests.faults.worker import Worker

ROWS = 3


class Undo(Exception):
    """Rolls a savepoint back."""


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, ROWS)


def turn(worker: Worker) -> None:
    first, second = (f"{worker.trial} {n}" for n in sorted(worker.dice.sample(range(ROWS), 2)))
    with worker.history.operation("add", name=first) as operation:
        with advisory_lock(first, timeout=2):
            number = Number.objects.get(name=first)
            for _ in range(worker.dice.randint(1, 3)):
                _roll_back(first, second)
            worker.think()
            number.value += 1
            number.save(update_fields=["value"])
            Entry.objects.create(operation=operation.id, name=first, change=1, left=number.value)
            operation.committing()


def _roll_back(first: str, second: str) -> None:
    """Write under both locks, and undo it: the outer one must still be held after it."""
    try:
        with transaction.atomic():
            with advisory_lock(first, timeout=2):
                if try_advisory_lock(second):
                    Number.objects.filter(name=second).update(value=-1000)
                Number.objects.filter(name=first).update(value=-1000)
            raise Undo  # noqa: TRY301 - as a view does
    except Undo:
        pass


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    return evidence.counters(database, trial, history)
