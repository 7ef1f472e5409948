"""A session's advisory lock around transactions, which a pooler gives to other sessions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from django_dblock.keys import encode, key_id
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    number = key_id(encode((worker.trial, name)))
    deadline = time.monotonic() + 2
    while not _asked("SELECT pg_try_advisory_lock(%s)", number):
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)
    try:
        yield Held(transaction.atomic)
    finally:
        _asked("SELECT pg_advisory_unlock(%s)", number)


def _asked(statement: str, number: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(statement, [number])
        return bool(cursor.fetchone()[0])
