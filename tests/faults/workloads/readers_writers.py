"""W6: readers and writers of two names; each commits a journal row in the order of commits."""

from django.db import connection

from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry
from tests.faults.worker import Worker

KEYS = 2


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "number", trial, KEYS)


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {worker.dice.randrange(KEYS)}"
    writes = worker.dice.random() < 0.3
    with worker.system.hold(worker, name, "write" if writes else "read") as held:
        for _ in range(worker.dice.randint(1, worker.size)):
            with worker.history.operation("act", name=name, token=held.token) as operation:
                with held.transaction():
                    worker.think()
                    with connection.cursor() as cursor:  # so that ids grow as commits do
                        cursor.execute(
                            "SELECT FROM faults_number WHERE name = %s FOR UPDATE", [name]
                        )
                    Entry.objects.create(
                        operation=operation.id, name=name, change=int(writes), left=0,
                        token=held.token,
                    )  # fmt: skip
                    operation.committing()


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    journal = evidence.entries(database, trial)
    found = checkers.outcomes(history, [entry.operation for entry in journal])
    return found + checkers.beside_a_writer(journal)
