"""W9: latches of four parts, whose transactions commit, roll back, or end with their worker."""

from django.db import transaction

from tests.faults import evidence
from tests.faults.checkers import Violation
from tests.faults.clock import now
from tests.faults.history import OK, Operation
from tests.faults.models import Entry
from tests.faults.worker import Worker

PARTS = 4
_EACH = 0.1
"""Seconds for which all workers work on one latch."""


class Abandoned(OSError):
    """A part that its worker rolled back."""


def prepare(database: evidence.Connection, trial: str) -> None:
    """The journal has what the parts have done."""


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {int(now() / _EACH) - worker.dice.randint(0, 2)}"
    part = worker.dice.randrange(PARTS)
    with worker.history.operation("part", name=name) as operation, transaction.atomic():
        Entry.objects.create(operation=operation.id, name=name, change=part, left=0)
        worker.system.count_down(worker, name, part, PARTS)
        worker.think()
        if worker.dice.random() < 0.2:
            raise Abandoned
        operation.committing()
    with worker.history.operation("look", name=name) as operation:
        operation.answer["open"] = bool(worker.system.is_open(worker, name, PARTS))
        done = Entry.objects.filter(name=name).values_list("change", flat=True)
        operation.answer["done"] = len(set(done))


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    looks = [each for each in history if each.act == "look" and each.outcome == OK]
    early = [each.id for each in looks if each.data["open"] and each.data["done"] < PARTS]
    return [Violation(9, f"{len(early)} latches were open too early", len(early))] * bool(early)
