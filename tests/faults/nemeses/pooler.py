"""A PgBouncer in transaction mode with a pool of three, which others fill for a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from tests.faults.services import url
from tests.faults.stage import Stage
from tests.helpers import servers

OTHERS = "%"  # the pooler keeps its connections, under the names of those that used them


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    with servers.pgbouncer(stage.server.url, "postgres", pool_size=3, query_wait_timeout=2) as port:
        stage.pooler = port
        yield {"HOST": "127.0.0.1", "PORT": port}


def torment(stage: Stage) -> None:
    target = url(stage.server).replace(str(stage.server.port), str(stage.pooler))
    for _ in stage.moments(0.1, 0.6):
        taken = stage.dice.randint(1, 3)
        seconds = stage.dice.uniform(0.05, 0.5)
        stage.fault("pool starved", connections=taken, seconds=seconds)
        with ExitStack() as stack:
            for _ in range(taken):
                filling = stack.enter_context(psycopg.connect(target, prepare_threshold=None))
                filling.execute("SELECT 1")
            stage.wait(seconds)
