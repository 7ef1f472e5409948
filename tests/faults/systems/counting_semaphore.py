"""The recipe "a counter that expires", as semaphores in Redis have it: two permits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()

# An expired counter starts again at nobody. Those who were counted still count themselves down.
_TAKE = """
INSERT INTO faults_lease (name, owner, expires_at)
VALUES (%s, '1', clock_timestamp() + %s * interval '1 second')
ON CONFLICT (name) DO UPDATE
SET owner = CASE WHEN faults_lease.expires_at < clock_timestamp() THEN '1'
        ELSE (faults_lease.owner::int + 1)::text END,
    expires_at = EXCLUDED.expires_at
WHERE faults_lease.expires_at < clock_timestamp() OR faults_lease.owner::int < 2
RETURNING owner::int
"""
_GIVE = "UPDATE faults_lease SET owner = (owner::int - 1)::text WHERE name = %s"


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    deadline = time.monotonic() + 2
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_TAKE, [worker.trial, worker.ttl])
            if row := cursor.fetchone():
                break
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)
    try:
        yield Held(transaction.atomic, 0, max(0, row[0] - 1) % 2)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(_GIVE, [worker.trial])
