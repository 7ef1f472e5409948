"""W7: one settlement in each period, asked for by all workers at once."""

import time
from collections import Counter

from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.clock import now
from tests.faults.history import FAIL, OK, Operation
from tests.faults.models import Entry
from tests.faults.worker import Worker

_EACH = 0.05
"""Seconds of a period."""


def prepare(database: evidence.Connection, trial: str) -> None:
    """The journal is the ledger."""


def turn(worker: Worker) -> None:
    latest = int(now() / _EACH)
    since = worker.state.setdefault("since", latest)
    back = worker.dice.randint(0, min(10, latest - since + 3)) if worker.dice.random() < 0.4 else 0
    name = f"{worker.trial} {latest - back}"
    with worker.history.operation("settle", name=name) as operation:
        operation.in_doubt = True

        def work() -> None:
            worker.think()
            Entry.objects.create(operation=operation.id, name=name, change=1, left=0)

        operation.answer["state"] = worker.system.settle(worker, name, work)
    if operation.answer["state"] == "running":
        time.sleep(worker.dice.uniform(0, 0.01))


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    journal = evidence.entries(database, trial)
    settled = [
        operation.data["name"]
        for operation in history
        if operation.outcome == OK and operation.data["state"] in ("ran", "done")
    ]
    refused = [operation for operation in history if operation.outcome == FAIL]
    told = {operation.id for operation in refused}
    committed = [entry.operation for entry in journal if entry.operation in told]
    return checkers.charges(Counter(entry.name for entry in journal), settled) + checkers.outcomes(
        refused, committed
    )
