"""An uncontended lock inside a transaction that is open already: one statement, and Python."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from django_dblock import advisory_lock, try_advisory_lock
from django_dblock.sql.advisory import TRY
from tests.benchmarks import peers
from tests.benchmarks.measure import Row, Scenario

RAW = "SELECT pg_try_advisory_xact_lock(%s)"
PARAMETERS = {"shared": False, "any_isolation": False, "application_name": ""}
UNLABELLED = {"DBLOCK_LABELS": "off"}
LABEL = "shop lock[inventory:sku-{}]"


def scenario() -> Scenario:
    rows = [
        Row("raw", "raw pg_try_advisory_xact_lock", _raw),
        Row("psycopg", "the same without Django's cursor", _psycopg, counted=False),
        Row("statement", "our statement, raw", _statement),
        Row("statement-labelled", "our statement with a label, raw", _labelled_statement),
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


def _statement(number: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(TRY, {**PARAMETERS, "id": number})
        assert cursor.fetchone() == ("locked",)


def _labelled_statement(number: int) -> None:
    with connection.cursor() as cursor:
        label = LABEL.format(number)
        cursor.execute(TRY, {**PARAMETERS, "id": number, "application_name": label})
        assert cursor.fetchone() == ("locked",)


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
