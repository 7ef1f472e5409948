"""Ours: ``fenced_lock``, each write by ``save_fenced``."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import transaction

from django_dblock import fenced_lock
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    with fenced_lock(worker.trial, name, ttl=worker.ttl, timeout=2) as lock:
        yield Held(transaction.atomic, lock.token, lock)
