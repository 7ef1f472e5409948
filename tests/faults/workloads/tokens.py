"""W4: leases on eight keys taken, looked at, renewed and given back."""

from django.db import Error

from django_dblock import LockLost, fenced_lock
from tests.faults import checkers, evidence, linear
from tests.faults.checkers import Violation
from tests.faults.history import Operation
from tests.faults.worker import Worker

KEYS = 8


def prepare(database: evidence.Connection, trial: str) -> None:
    """Each lease's row is made by who takes it first."""


def turn(worker: Worker) -> None:
    name = f"{worker.trial} {worker.dice.randrange(KEYS)}"
    block = fenced_lock(name, ttl=worker.ttl, timeout=worker.dice.choice([0, 0.05, 0.5]))
    with worker.history.operation("acquire", name=name, ttl=worker.ttl) as operation:
        operation.in_doubt = True  # an answer that is lost on the way is a lease that nobody has
        lock = block.__enter__()
        operation.answer["token"] = lock.token
    try:
        for _ in range(worker.dice.randint(1, 30)):
            if worker.dice.random() < 0.15:
                asked = {"name": name, "token": lock.token, "ttl": worker.ttl}
                with worker.history.operation("renew", **asked) as operation:
                    operation.in_doubt = True
                    lock.renew()
            else:
                worker.think()
                with worker.history.operation("check", name=name, token=lock.token):
                    lock.check()
    except (LockLost, Error):
        pass  # the history has it; a lease that can't be renewed now is given back all the same
    finally:
        with worker.history.operation("release", name=name, token=lock.token) as operation:
            operation.in_doubt = True
            operation.answer["had"] = lock.release()
            block._pop()  # what leaving the block would do beside


def judge(database: evidence.Connection, trial: str, history: list[Operation]) -> list[Violation]:
    acts: dict[str, list[Operation]] = {"acquire": [], "check": [], "renew": [], "release": []}
    for operation in history:
        acts[operation.act].append(operation)
    return checkers.tokens(acts["acquire"]) + checkers.trust(
        acts["check"] + acts["renew"], acts["acquire"]
    )


def ordered(history: list[Operation]) -> linear.Verdict:
    """Judge the same again, as a whole: also what was given back, and what came too early."""
    return linear.judge(history)
