"""The recipe "worker number modulo workers", counted by rows that expire, without a guard."""

from collections.abc import Iterator
from datetime import timedelta

from django.db import connection, transaction

from tests.faults.clock import now
from tests.faults.models import Lease
from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = ()


def owned(worker: Worker, count: int, seconds: float) -> Iterator[tuple[int, Held]]:
    me = f"{worker.trial} {worker.number}"
    until = min(now() + seconds, worker.until)
    while now() < until:
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            [moment] = cursor.fetchone()
        Lease.objects.update_or_create(
            name=me, defaults={"owner": "", "expires_at": moment + timedelta(seconds=worker.ttl)}
        )
        live = sorted(
            Lease.objects.filter(
                name__startswith=f"{worker.trial} ", expires_at__gt=moment
            ).values_list("name", flat=True)
        )
        for number in range(count):
            if live[number % len(live)] == me:
                yield number, Held(transaction.atomic)
    Lease.objects.filter(name=me).delete()
