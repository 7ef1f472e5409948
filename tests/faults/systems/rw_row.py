"""The recipe "a counter of readers and a writer's row", each with a ttl, around transactions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from tests.faults.models import Lease
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()

_TAKE = """
INSERT INTO faults_lease (name, owner, expires_at)
SELECT %(mine)s, %(token)s, clock_timestamp() + %(ttl)s * interval '1 second'
WHERE NOT EXISTS (
    SELECT FROM faults_lease
    WHERE starts_with(name, %(name)s || ' ') AND expires_at > clock_timestamp()
        AND (%(writes)s OR starts_with(name, %(name)s || ' write'))
)
RETURNING floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint
"""


@contextmanager
def hold(worker: Worker, name: str, mode: str) -> Iterator[Held]:
    mine = f"{name} {mode} {worker.number} {worker.dice.random()}"
    parameters = {
        "mine": mine, "name": name, "ttl": worker.ttl, "token": "", "writes": mode == "write",
    }  # fmt: skip
    deadline = time.monotonic() + 2
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_TAKE, parameters)
            if row := cursor.fetchone():
                break
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)
    try:
        yield Held(transaction.atomic, row[0])
    finally:
        Lease.objects.filter(name=mine).delete()
