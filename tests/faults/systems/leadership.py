"""Ours: one term of ``leadership``, each write under ``term.guard()``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django_dblock import leadership
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    deadline = time.monotonic() + 2
    terms = iter(leadership(name, ttl=worker.ttl, stop=lambda: time.monotonic() > deadline))
    term = next(terms, None)
    if term is None:
        raise TimeoutError(name)
    try:
        yield Held(term.guard, term.token)
    finally:
        terms.close()  # resigns
