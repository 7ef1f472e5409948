"""Lock a key, update a row, commit: what a lock is for, with the fsync that makes it count."""

import functools

from django.db import connections, transaction

from tests.benchmarks import peers, tables
from tests.benchmarks.measure import Row, Scenario
from tests.benchmarks.ways import Way, redis_durable, ways


def scenario() -> Scenario:
    return Scenario("commit", "Lock, update, commit", _rows("default"), calls=5)


def scenario_with_latency() -> Scenario:
    return Scenario(
        "commit-latency",
        "Lock, update, commit; 1 ms each way to the server",
        _rows("latency"),
        calls=3,
        alias="latency",
    )


def _rows(alias: str) -> list[Row]:
    found = ways()
    if peers.has_redis() and alias == "default":
        found.append(
            Way("redis-durable", "redis-py Lock, appendfsync always", redis_durable, peer=True)
        )
    rows = [
        Row(way.name, way.label, functools.partial(locked, way, alias), peer=way.peer)
        for way in found
    ]
    return [*rows, Row("unlocked", "no lock at all", functools.partial(_unlocked, alias))]


def locked(way: Way, alias: str, call: int) -> None:
    number = tables.row_of(call)
    with way.hold(alias, number):
        _update(alias, number)


def _unlocked(alias: str, call: int) -> None:
    with transaction.atomic(using=alias):
        _update(alias, tables.row_of(call))


def _update(alias: str, number: int) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("UPDATE app_counter SET value = value + 1 WHERE id = %s", [number])
