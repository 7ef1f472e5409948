"""The recipe "a row with owner and expiry", by the database's clock, around transactions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.db import connection, transaction

from tests.faults.models import Lease
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()

_TAKE = """
INSERT INTO faults_lease (name, owner, expires_at) VALUES (%s, %s, %s)
ON CONFLICT (name) DO UPDATE SET owner = EXCLUDED.owner, expires_at = EXCLUDED.expires_at
WHERE faults_lease.expires_at < %s
"""


def hold(worker: Worker, name: str) -> object:
    return holding(worker, name, _server_time)


def _server_time() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]


@contextmanager
def holding(worker: Worker, name: str, clock: object) -> Iterator[Held]:
    """Take the row when it has expired by this clock; give it back if it is still ours."""
    owner = f"{worker.number} {worker.dice.random()}"
    deadline = time.monotonic() + 2
    while True:
        now = clock()
        with connection.cursor() as cursor:
            cursor.execute(_TAKE, [name, owner, now + timedelta(seconds=worker.ttl), now])
            if cursor.rowcount:
                break
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)
    try:
        yield Held(transaction.atomic)
    finally:
        Lease.objects.filter(name=name, owner=owner).delete()
