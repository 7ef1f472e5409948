"""W8: eight partitions, each with a number that its owner reads, adds to and writes back."""

from tests.faults import evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, Number
from tests.faults.worker import Worker

PARTITIONS = 8


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, PARTITIONS)


def turn(worker: Worker) -> None:
    for part, held in worker.system.owned(worker, PARTITIONS, worker.dice.uniform(0.3, 1)):
        name = f"{worker.trial} {part}"
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
