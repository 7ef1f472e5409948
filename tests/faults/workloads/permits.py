"""W5: two permits; each has a number that is read, added to in Python and written back.

So two holders of one slot lose updates, and no more than two slots exist.
"""

from tests.faults import evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, Number
from tests.faults.worker import Worker

SLOTS = 2


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, SLOTS)


def turn(worker: Worker) -> None:
    with worker.system.hold(worker, "permits") as held:
        name = f"{worker.trial} {held.lock}"
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
