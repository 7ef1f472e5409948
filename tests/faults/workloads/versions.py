"""W5: rows that all want to write, without any lock: ``save_cas``, or plain ``save()``."""

from django.db import transaction

from django_dblock import StaleObject, bypass_versions
from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.models import Entry, VersionedNumber
from tests.faults.worker import Worker

ROWS = 3


def prepare(database: evidence.Connection, trial: str) -> None:
    evidence.insert(database, "versionednumber", trial, ROWS)


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {worker.dice.randrange(ROWS)}"
    plain = worker.system.__name__.endswith("plain_save")
    row = VersionedNumber.objects.get(name=name)
    worker.think()
    row.value += 1
    try:
        with (
            worker.history.operation("save", name=name, plain=plain) as operation,
            transaction.atomic(),
        ):
            if plain:
                with bypass_versions():
                    row.save(update_fields=["value"])
            else:
                row.save_cas(update_fields=["value"])
            Entry.objects.create(operation=operation.id, name=name, change=1, left=row.value)
            operation.committing()
    except StaleObject:
        pass  # somebody was faster: the next turn reads it again


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    found = evidence.counters(database, trial, history, "versionednumber")
    rows = database.execute(
        "SELECT name, version FROM faults_versionednumber WHERE starts_with(name, %s || ' ')",
        [trial],
    )
    for name, version in rows:
        of_name = [operation for operation in history if operation.data["name"] == name]
        saves = [operation for operation in of_name if not operation.data["plain"]]
        found += checkers.versions(1, version, saves, name)
    return found
