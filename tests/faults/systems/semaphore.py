"""Ours: ``fenced_semaphore`` with two permits, each write under ``permit.guard()``."""

from collections.abc import Iterator
from contextlib import contextmanager

from django_dblock import fenced_semaphore
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    with fenced_semaphore(worker.trial, "permits", permits=2, ttl=worker.ttl, timeout=2) as permit:
        yield Held(permit.guard, permit.token, permit.slot)
