"""For the shop: workers of its server are killed and frozen, and backends are ended."""

import os
import signal
from contextlib import suppress

from tests.faults.services import connect
from tests.faults.stage import Stage

_ENDED = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = %s ORDER BY random() LIMIT 1
"""


def torment(stage: Stage) -> None:
    folder = stage.folder / "workers"
    with connect(stage.server) as database:
        database.execute("SELECT setseed(%s)", [stage.dice.random()])
        for _ in stage.moments(0.1, 0.6):
            what = stage.dice.choice(["kill", "stop", "terminate"])
            pids = sorted(int(file.name) for file in folder.iterdir())
            if what == "terminate":
                database.execute(_ENDED, [f"shop_{stage.trial.name}"])
                stage.fault(what)
            elif pids:
                pid = stage.dice.choice(pids)
                stage.fault(what, pid=pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
                    if what == "stop":
                        stage.wait(stage.dice.uniform(0.3, 1.5))
                        os.kill(pid, signal.SIGCONT)
