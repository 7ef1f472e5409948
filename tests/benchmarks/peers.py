"""What does the same job elsewhere, as far as it is here: django-pglock and redis-py."""

import functools
import importlib.util
import os
from typing import Any

ALIASES = {
    "default": "DBLOCK_BENCH_REDIS",
    "latency": "DBLOCK_BENCH_REDIS_LATENCY",
    "durable": "DBLOCK_BENCH_REDIS_DURABLE",
}
EXPIRY = 10
"""Seconds after which a Redis lock ends by itself; without it, a dead holder blocks for ever."""


def has_pglock() -> bool:
    return importlib.util.find_spec("pglock") is not None


def has_redis() -> bool:
    return "DBLOCK_BENCH_REDIS" in os.environ


@functools.cache
def redis_client(alias: str) -> Any:
    """The client of this process for the server that stands beside the database alias."""
    import redis

    return redis.Redis.from_url(os.environ[ALIASES[alias]])


def redis_lock(alias: str, name: str) -> Any:
    """A lock object of redis-py with its default sleep of 0.1 s between two tries."""
    return redis_client(alias).lock(name, timeout=EXPIRY)


def redis_clients() -> list[Any]:
    return [redis_client(alias) for alias in ALIASES] if has_redis() else []
