"""W6: two keys locked one inside the other, in any order; money moves between their rows."""

from django_dblock import LockDeadlock, advisory_lock
from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, Number
from tests.faults.worker import Worker

ROWS, EACH = 3, 100


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, ROWS, EACH)


def turn(worker: Worker) -> None:
    names = [f"{worker.trial} {number}" for number in worker.dice.sample(range(ROWS), 2)]
    try:
        with worker.history.operation("transfer") as operation:
            with advisory_lock(names[0], timeout=2):
                worker.think(0.004)
                with advisory_lock(names[1], timeout=2):
                    for name, change in zip(names, (-1, 1), strict=True):
                        number = Number.objects.get(name=name)
                        number.value += change
                        number.save(update_fields=["value"])
                        Entry.objects.create(
                            operation=f"{operation.id}{'+' * (change > 0)}", name=name,
                            change=change, left=number.value,
                        )  # fmt: skip
                operation.committing()
    except LockDeadlock:
        pass  # the server has chosen us; both keys are free again


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    journal = evidence.entries(database, trial)
    found = checkers.outcomes(
        history, [entry.operation for entry in journal if not entry.operation.endswith("+")]
    )
    values = evidence.values(database, "number", trial)
    for name, value in values.items():
        of_name = [entry for entry in journal if entry.name == name]
        found += checkers.lost_updates(of_name, EACH, value, name)
    return found + checkers.conserved(EACH * ROWS, sum(values.values()), "the money")
