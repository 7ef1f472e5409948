"""Backends are ended, between two statements of their client and at any moment."""

from tests.faults.services import connect
from tests.faults.stage import Stage

FAULTS = {"terminate": 0.01}

_ENDED = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
"""


def torment(stage: Stage) -> None:
    with connect(stage.server) as database:
        database.execute("SELECT setseed(%s)", [stage.dice.random()])
        for _ in stage.moments(0.02, 0.3):
            if database.execute(_ENDED).fetchone():
                stage.fault("terminate")
