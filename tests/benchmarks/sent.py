"""Count what a call sends: statements to PostgreSQL, commands to Redis."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections
from django.test.utils import CaptureQueriesContext

from tests.benchmarks import peers


@contextmanager
def counted(alias: str) -> Iterator[dict[str, int]]:
    """Fill the yielded dict at the end with ``statements`` and ``redis_commands``."""
    found = {"statements": 0, "redis_commands": 0}
    clients = peers.redis_clients()
    originals = [client.execute_command for client in clients]

    def counting(original):
        def execute_command(*args, **kwargs):
            found["redis_commands"] += 1
            return original(*args, **kwargs)

        return execute_command

    for client, original in zip(clients, originals, strict=True):
        client.execute_command = counting(original)
    try:
        with CaptureQueriesContext(connections[alias]) as statements:
            yield found
        found["statements"] = len(statements)
    finally:
        for client in clients:
            del client.execute_command
