"""The standby is promoted while the old primary goes on, and its waits for the standby are cancelled.

So both take writes, and the old one says COMMIT, with nothing but a warning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.nemeses import pair
from tests.faults.services import connect
from tests.faults.stage import Stage

_CANCEL = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pg_cancel_backend(pid)
"""

OWN_SERVER = True


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    with pair.running(stage) as database:
        yield database


def torment(stage: Stage) -> None:
    old = stage.server
    for _ in stage.moments(stage.trial.seconds * 0.2, stage.trial.seconds * 0.4):
        stage.fault("zombie")
        stage.standby.run("pg_ctl", "promote", "-w", "-D", str(stage.standby.folder))
        break
    with connect(old) as zombie:
        for _ in stage.moments(0.02, 0.1):
            [(cancelled,)] = zombie.execute(_CANCEL).fetchall()
            for _ in range(cancelled):
                stage.fault("wait for the standby cancelled")
    stage.server = stage.standby
