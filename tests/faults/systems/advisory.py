"""Ours: ``advisory_lock``, which is the transaction, too."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from django_dblock import advisory_lock
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    with advisory_lock(worker.trial, name, timeout=2):
        yield Held(nullcontext)
