"""The ``Lock`` of redis-py, around a transaction, as its documentation has it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from django.db import transaction

from tests.faults.systems.held import Held
from tests.faults.worker import Worker

ERRORS = (redis.RedisError,)


@contextmanager
def hold(worker: Worker, name: str) -> Iterator[Held]:
    client = worker.state.setdefault(
        "redis", redis.Redis.from_url(os.environ["DBLOCK_FAULTS_REDIS"])
    )
    lock = client.lock(f"{worker.trial}:{name}", timeout=worker.ttl, sleep=0.01, blocking_timeout=2)
    with lock:
        yield Held(transaction.atomic)
