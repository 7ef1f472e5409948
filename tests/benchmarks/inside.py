"""An uncontended lock inside a transaction that is open already: one statement, and Python."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction

from django_dblock import advisory_lock, try_advisory_lock
from tests.benchmarks import peers
from tests.benchmarks.measure import Row, Scenario, configured

RAW = "SELECT pg_try_advisory_xact_lock(%s)"
UNLABELLED = {"DBLOCK_LABELS": "off"}


def scenario() -> Scenario:
    rows = [
        Row("raw", "raw pg_try_advisory_xact_lock", _raw),
        Row("psycopg", "the same without Django's cursor", _psycopg, counted=False),
        Row("statement", "our statement without a label, raw", _replay(UNLABELLED)),
        Row("statement-labelled", "our statement, raw", _replay({})),
        Row("advisory_lock", "advisory_lock", _advisory_lock),
        Row("unlabelled", "advisory_lock, DBLOCK_LABELS off", _advisory_lock, UNLABELLED),
        Row("try_advisory_lock", "try_advisory_lock", _try_advisory_lock),
    ]
    if peers.has_pglock():
        rows.append(Row("pglock", "django-pglock, xact", _pglock, peer=True))
    if peers.has_redis():
        rows.append(Row("redis", "redis-py Lock, acquire and release", _redis, peer=True))
        rows.append(Row("redis-durable", "the same, appendfsync always", _redis_durable, peer=True))
    return Scenario("inside", "Lock inside a transaction", rows, around=_transaction, calls=20)


@contextmanager
def _transaction() -> Iterator[None]:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")  # BEGIN goes out with the first statement: not with ours
        yield
        transaction.set_rollback(True)


def _raw(number: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(RAW, [number])
        assert cursor.fetchone() == (True,)


def _psycopg(number: int) -> None:
    with connection.connection.cursor() as cursor:
        cursor.execute(RAW, [number])
        assert cursor.fetchone() == (True,)


def _replay(values: Mapping[str, Any]) -> Callable[[int], None]:
    """Return a call that sends what ``advisory_lock`` sends, and does nothing else."""
    recorded = []

    def record(execute, sql, parameters, many, context):
        recorded.append((sql, parameters))
        return execute(sql, parameters, many, context)

    with configured(values), _transaction(), connection.execute_wrapper(record):
        _advisory_lock(0)
    [(sql, parameters)] = recorded

    def replay(number: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            cursor.fetchone()

    return replay


def _advisory_lock(number: int) -> None:
    with advisory_lock("inventory", f"sku-{number}"):
        pass


def _try_advisory_lock(number: int) -> None:
    assert try_advisory_lock("inventory", f"sku-{number}")


def _pglock(number: int) -> None:
    import pglock

    assert pglock.advisory(f"inventory:sku-{number}", xact=True).acquire()


def _redis(number: int, server: str = "default") -> None:
    with peers.redis_lock(server, f"inventory:sku-{number}"):
        pass


def _redis_durable(number: int) -> None:
    _redis(number, "durable")
