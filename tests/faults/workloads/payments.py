"""W3 in one process: requests with an Idempotency-Key, the same by several workers at once."""

import time
from collections import Counter, defaultdict

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory

from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.clock import now
from tests.faults.history import FAIL, OK, Operation
from tests.faults.models import Entry
from tests.faults.worker import Worker

_EACH = 0.03
"""Seconds for which all workers ask for the same new payment."""


class Busy(OSError):
    """An answer that says: not now, and nothing was done for this request."""


def prepare(database: evidence.Connection, trial: str) -> None:
    """The journal is the ledger."""


def charge(request: HttpRequest) -> HttpResponse:
    """The view that must have its effect once."""
    time.sleep(request.think)
    entry = Entry.objects.create(operation=request.operation, name=request.name, change=1, left=0)
    return JsonResponse({"charge": entry.pk}, status=201)


def turn(worker: Worker) -> None:
    key = worker.state.pop("again", None) or _key(worker)
    worker.state["again"] = key  # until there is an answer
    with worker.history.operation("pay", name=key) as operation:
        operation.in_doubt = True
        response = worker.system.pay(_request(key, operation.id, worker))
        if response.status_code in (409, 423):
            operation.in_doubt = False
            raise Busy
        if response.status_code != 201:
            raise OSError(response.status_code)
        operation.answer["body"] = response.content.decode()
    del worker.state["again"]


def _key(worker: Worker) -> str:
    """The payment of this moment, or one that was asked for before, perhaps by one who died."""
    latest = int(now() / _EACH)
    since = worker.state.setdefault("since", latest)
    back = worker.dice.randint(0, min(20, latest - since + 5)) if worker.dice.random() < 0.4 else 0
    return f"{worker.trial} {latest - back}"


def _request(key: str, operation: str, worker: Worker) -> HttpRequest:
    # The body is the same for all who ask for one payment, or it would be another's.
    headers = {"Idempotency-Key": key.replace(" ", "-")}
    request = RequestFactory().post(
        "/pay/", {"amount": 1}, content_type="application/json", headers=headers
    )
    request.name = key
    request.operation, request.think = operation, worker.dice.uniform(0, 0.004)
    request.worker = worker
    return request


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    journal = evidence.entries(database, trial)
    answered = [operation for operation in history if operation.outcome == OK]
    answers: dict[str, list[str]] = defaultdict(list)
    for operation in answered:
        answers[operation.data["name"]].append(operation.data["body"])
    refused = [operation for operation in history if operation.outcome == FAIL]
    committed = [entry.operation for entry in journal]
    told = {operation.id for operation in refused}
    return (
        checkers.charges(Counter(entry.name for entry in journal), answers)
        + checkers.replays(answers)
        + checkers.outcomes(refused, [number for number in committed if number in told])
    )
