"""The recipe of a cache key with SET NX and an expiry: recorded first, run then."""

from typing import Any

from django.db import connection, transaction

from tests.faults.worker import Worker

ERRORS = ()


def settle(worker: Worker, key: str, work: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO faults_lease (name, owner, expires_at)"
            " VALUES (%s, '', clock_timestamp() + interval '1 day') ON CONFLICT DO NOTHING",
            [key],
        )
        if not cursor.rowcount:
            return "done"
    with transaction.atomic():
        work()
    return "ran"
