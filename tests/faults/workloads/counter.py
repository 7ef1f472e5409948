"""W1: numbers that are read, added to in Python and written back, under a lock on each."""

from tests.faults import evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, Number
from tests.faults.worker import Worker

KEYS = 3


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, KEYS)


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {worker.dice.randrange(KEYS)}"
    with worker.system.hold(worker, name) as held:
        for _ in range(worker.dice.randint(1, worker.size)):
            with worker.history.operation("add", name=name, token=held.token) as operation:
                with held.transaction():
                    number = Number.objects.get(name=name)
                    worker.think()
                    number.value += 1
                    number.save(update_fields=["value"])
                    Entry.objects.create(
                        operation=operation.id, name=name, change=1, left=number.value,
                        token=held.token,
                    )  # fmt: skip
                    operation.committing()


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    return evidence.counters(database, trial, history)
