"""Ten keys at once inside an open transaction: one round trip, or one for each."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, transaction

from django_dblock import advisory_locks
from tests.benchmarks import peers
from tests.benchmarks.measure import Row, Scenario

KEYS = 10
RAW = (
    "SELECT pg_advisory_xact_lock(id) FROM"
    " (SELECT id FROM unnest(%s::bigint[]) AS id ORDER BY id) AS wanted"
)


def scenario() -> Scenario:
    return Scenario(
        "several",
        f"{KEYS} keys inside a transaction",
        _rows("default"),
        around=functools.partial(opened, "default"),
        calls=10,
    )


def scenario_with_latency() -> Scenario:
    return Scenario(
        "several-latency",
        f"{KEYS} keys inside a transaction; 1 ms each way to the server",
        _rows("latency"),
        around=functools.partial(opened, "latency"),
        calls=3,
        alias="latency",
    )


def _rows(alias: str) -> list[Row]:
    def row(name, label, call, *, peer=False):
        return Row(name, label, functools.partial(call, alias), peer=peer)

    rows = [
        row("raw", "raw, one statement for all", raw),
        row("advisory_locks", "advisory_locks", ours),
    ]
    if peers.has_pglock():
        rows.append(row("pglock", "django-pglock, one by one", _pglock, peer=True))
    if peers.has_redis():
        rows.append(row("redis", "redis-py Lock, one by one", _redis, peer=True))
    return rows


@contextmanager
def opened(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")  # BEGIN goes out with the first statement: not with ours
        yield
        transaction.set_rollback(True, using=alias)


def raw(alias: str, call: int, count: int = KEYS) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(RAW, [[call * count + place for place in range(count)]])
        cursor.fetchall()


def ours(alias: str, call: int, count: int = KEYS) -> None:
    with advisory_locks([("account", call * count + place) for place in range(count)], using=alias):
        pass


def _pglock(alias: str, call: int) -> None:
    import pglock

    for place in range(KEYS):
        name = f"account:{call * KEYS + place}"
        assert pglock.advisory(name, xact=True, using=alias).acquire()


def _redis(alias: str, call: int) -> None:
    locks = [peers.redis_lock(alias, f"account:{call * KEYS + place}") for place in range(KEYS)]
    for lock in locks:
        lock.acquire()
    for lock in locks:
        lock.release()
