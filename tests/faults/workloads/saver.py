"""W1 with ``save_fenced``: numbers read, added to and written back, each write fenced."""

from django.db import transaction

from tests.faults import evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, FencedNumber
from tests.faults.worker import Worker

KEYS = 3


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "fencednumber", trial, KEYS)


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {worker.dice.randrange(KEYS)}"
    with worker.system.hold(worker, name) as held:
        for _ in range(worker.dice.randint(1, worker.size)):
            with worker.history.operation("add", name=name, token=held.token) as operation:
                number = FencedNumber.objects.get(name=name)
                worker.think(0.01)
                number.value += 1
                with transaction.atomic():
                    number.save_fenced(held.lock)
                    Entry.objects.create(
                        operation=operation.id, name=name, change=1, left=number.value,
                        token=held.token,
                    )  # fmt: skip
                    operation.committing()


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    return evidence.counters(database, trial, history, "fencednumber")
