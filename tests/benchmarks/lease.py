"""A lease taken and given back, uncontended: two statements, two commits, and Python."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import connections

from django_dblock import fenced_lock
from tests.benchmarks import peers, tables
from tests.benchmarks.measure import Row, Scenario

TTL = 10
NAMES = 10
"""Of the leases that are acquired again and again, as those of scheduled jobs are."""


def scenario() -> Scenario:
    return Scenario("lease", "A lease taken and given back", _rows("default"))


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
        Row("raw", "the pair of statements that you would write by hand", by_hand(alias)),
        Row("raw-again", "the same, for ten names again and again", by_hand_again(alias)),
        Row("again", "fenced_lock, for ten names again and again", partial(fenced_again, alias)),
        Row("new", "fenced_lock, for a new name", partial(fenced, alias)),
        Row("quiet", "the same, heartbeat=False", partial(fenced, alias, heartbeat=False)),
    ]
    if peers.has_redis():
        rows.append(Row("redis", "redis-py Lock", partial(_redis, alias), peer=True))
    if peers.has_redis() and alias == "default":
        durable = partial(_redis, "durable")
        rows.append(Row("redis-durable", "redis-py Lock, appendfsync always", durable, peer=True))
    return rows


def fenced(alias: str, number: int, **options: Any) -> None:
    with fenced_lock("job", number, ttl=TTL, using=alias, **options):
        pass


def fenced_again(alias: str, number: int) -> None:
    with fenced_lock("known job", number % NAMES, ttl=TTL, using=alias):
        pass


def _redis(alias: str, number: int) -> None:
    with peers.redis_lock(alias, f"job:{tables.row_of(number)}"):
        pass


# Written by hand: one holder at a time by the server's clock, an expiry, an owner. No token that
# fences, no guard, nobody who waits.
TABLE = """
CREATE TABLE IF NOT EXISTS lease_by_hand (
    name varchar(255) PRIMARY KEY,
    token bigint NOT NULL,
    owner varchar(255) NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50)
"""
TAKE = """
INSERT INTO lease_by_hand (name, token, owner, expires_at)
VALUES (%(name)s, 1, %(owner)s, clock_timestamp() + %(ttl)s * interval '1 second')
ON CONFLICT (name) DO UPDATE
SET token = lease_by_hand.token + 1,
    owner = EXCLUDED.owner,
    expires_at = clock_timestamp() + %(ttl)s * interval '1 second'
WHERE lease_by_hand.expires_at <= clock_timestamp()
RETURNING token
"""
RELEASE = """
UPDATE lease_by_hand SET expires_at = clock_timestamp()
WHERE name = %(name)s AND token = %(token)s
"""


def by_hand(alias: str) -> Callable[[int], None]:
    with connections[alias].cursor() as cursor:
        cursor.execute(TABLE)

    def pair(number: int) -> None:
        name = f"job:{number}"
        with connections[alias].cursor() as cursor:
            cursor.execute(TAKE, {"name": name, "owner": "host:1:main", "ttl": TTL})
            [(token,)] = cursor.fetchall()
        with connections[alias].cursor() as cursor:
            cursor.execute(RELEASE, {"name": name, "token": token})
            assert cursor.rowcount == 1

    return pair


def by_hand_again(alias: str) -> Callable[[int], None]:
    pair = by_hand(alias)
    return lambda number: pair(number % NAMES)
