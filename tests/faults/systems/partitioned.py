"""Ours: ``partitions``; each write under ``part.guard()``."""

from collections.abc import Iterator

from django_dblock import partitions
from tests.faults.clock import now
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


def owned(worker: Worker, count: int, seconds: float) -> Iterator[tuple[int, Held]]:
    """Yield the partitions that are owned, again and again, for so long."""
    with partitions(worker.trial, count=count, ttl=worker.ttl) as mine:
        until = min(now() + seconds, worker.until)
        while now() < until:
            for part in mine:
                with part:
                    yield part.number, Held(part.guard, part.token)
