"""python-redis-lock with ``auto_renewal``, around a transaction."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis
import redis_lock
from django.db import transaction

from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = (redis.RedisError, RuntimeError)


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    client = worker.state.setdefault(
        "redis", redis.Redis.from_url(os.environ["DBLOCK_FAULTS_REDIS"])
    )
    lock = redis_lock.Lock(
        client, f"{worker.trial}:{name}", expire=max(1, int(worker.ttl)), auto_renewal=True
    )
    if not lock.acquire(timeout=2):
        raise TimeoutError(name)
    try:
        yield Held(transaction.atomic)
    finally:
        with suppress(redis_lock.NotAcquired):
            lock.release()
