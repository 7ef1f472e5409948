"""The recipe of a counter beside the transaction, as a latch in Redis is counted down."""

import psycopg
from django.db import connection

from tests.faults.models import Lease
from tests.faults.worker import Worker

ERRORS = (psycopg.Error,)

_COUNT = """
INSERT INTO faults_lease (name, owner, expires_at) VALUES (%s, '1', now() + interval '1 day')
ON CONFLICT (name) DO UPDATE SET owner = (faults_lease.owner::int + 1)::text
"""


def count_down(worker: Worker, name: str, part: int, parties: int) -> None:
    beside = connection.copy("beside")
    try:
        with beside.cursor() as cursor:
            cursor.execute(_COUNT, [name])
    finally:
        beside.close()


def is_open(worker: Worker, name: str, parties: int) -> bool:
    row = Lease.objects.filter(name=name).first()
    return row is not None and int(row.owner) >= parties
