"""The recipe ``if cache.add(key, 1, timeout): … cache.delete(key)``, around a transaction."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from django.core.cache import cache
from django.db import transaction

from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = (redis.RedisError,)


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    key = f"{worker.trial}:{name}".replace(" ", "-")
    deadline = time.monotonic() + 2
    while not cache.add(key, 1, max(1, int(worker.ttl))):
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)
    try:
        yield Held(transaction.atomic)
    finally:
        cache.delete(key)
