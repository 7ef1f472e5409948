"""A lease taken and given back, uncontended: two statements, two commits, and Python."""

import functools
from collections.abc import Callable
from typing import Any

from django.db import connections

from django_dblock import fenced_lock
from tests.benchmarks import peers, tables
from tests.benchmarks.measure import Row, Scenario

TTL = 10


def scenario() -> Scenario:
    return Scenario("lease", "A lease taken and given back", _rows("default"), calls=5)


def scenario_with_latency() -> Scenario:
    return Scenario(
        "lease-latency",
        "A lease taken and given back; 1 ms each way to the server",
        _rows("latency"),
        calls=3,
        alias="latency",
    )


def _rows(alias: str) -> list[Row]:
    rows = [
        Row("raw", "our two statements, raw", _replay(alias)),
        Row("fenced_lock", "fenced_lock", functools.partial(_fenced, alias)),
        Row(
            "quiet", "the same, heartbeat=False", functools.partial(_fenced, alias, heartbeat=False)
        ),
    ]
    if peers.has_redis():
        rows.append(Row("redis", "redis-py Lock", functools.partial(_redis, alias), peer=True))
    if peers.has_redis() and alias == "default":
        durable = functools.partial(_redis, "durable")
        rows.append(Row("redis-durable", "redis-py Lock, appendfsync always", durable, peer=True))
    return rows


def _fenced(alias: str, number: int, **options: Any) -> None:
    with fenced_lock("job", tables.row_of(number), ttl=TTL, using=alias, **options):
        pass


def _redis(alias: str, number: int) -> None:
    with peers.redis_lock(alias, f"job:{tables.row_of(number)}"):
        pass


def _replay(alias: str) -> Callable[[int], None]:
    """Return a call that sends what ``fenced_lock`` sends, for another name each time."""
    recorded: list[tuple[str, dict[str, Any]]] = []

    def record(execute, sql, parameters, many, context):
        recorded.append((sql, parameters))
        return execute(sql, parameters, many, context)

    with connections[alias].execute_wrapper(record):
        _fenced(alias, 0, heartbeat=False)
    [(acquire, asked), (release, given)] = recorded

    def replay(number: int) -> None:
        name = f"raw:{tables.row_of(number)}"
        with connections[alias].cursor() as cursor:
            cursor.execute(acquire, {**asked, "name": name})
            [(outcome, token, *_)] = cursor.fetchall()
            assert outcome == "acquired"
        with connections[alias].cursor() as cursor:
            cursor.execute(release, {**given, "name": name, "token": token})
            assert cursor.fetchone() is not None

    return replay
