"""W2: a stock that is sold and filled up again, under a lock on each item."""

from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, Number
from tests.faults.worker import Worker

ITEMS, STOCK = 3, 20


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, ITEMS, STOCK)


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {worker.dice.randrange(ITEMS)}"
    change = -worker.dice.randint(1, 5) if worker.dice.random() < 0.6 else worker.dice.randint(1, 6)
    with worker.history.operation("move", name=name, change=change) as operation:
        with worker.system.hold(worker, name):
            item = Number.objects.get(name=name)
            worker.think()
            operation.answer["moved"] = item.value + change >= 0
            if operation.answer["moved"]:
                item.value += change
                item.save(update_fields=["value"])
            # One that sells nothing is in the journal, too: an answer is an answer.
            Entry.objects.create(
                operation=operation.id, name=name, left=item.value,
                change=change if operation.answer["moved"] else 0,
            )  # fmt: skip
            operation.committing()


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    journal = evidence.entries(database, trial)
    found = checkers.outcomes(history, [entry.operation for entry in journal])
    for name, left in evidence.values(database, "number", trial).items():
        of_name = [entry for entry in journal if entry.name == name]
        found += checkers.stock(of_name, STOCK, left, name)
    return found
