"""Ours: ``fenced_rwlock``; the workload says whether it reads or writes."""

from collections.abc import Iterator
from contextlib import contextmanager

from django_dblock import fenced_rwlock
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


@contextmanager
def hold(worker: Worker, name: str, mode: str) -> Iterator[Held]:
    block = getattr(fenced_rwlock(name), mode)
    with block(ttl=worker.ttl, timeout=2) as lease:
        yield Held(lease.guard, lease.token)
