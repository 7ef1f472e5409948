"""The standby is promoted, and the old primary goes on; its waits for the standby are cancelled.

So both take writes, and the old one says COMMIT, with nothing but a warning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.nemeses import pair
from tests.faults.services import connect
from tests.faults.stage import Stage

_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

OWN_SERVER = True


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    with pair.running(stage) as database:
        yield database


def torment(stage: Stage) -> None:
    old = stage.server
    stage.wait(stage.trial.seconds * stage.dice.uniform(0.2, 0.4))
    stage.fault("zombie")
    stage.standby.run("pg_ctl", "promote", "-w", "-D", str(stage.standby.folder))
    with connect(old) as zombie:
        while stage.busy():  # to the end: what waits for a standby waits for ever
            for (pid,) in zombie.execute(_WAITING).fetchall():
                zombie.execute("SELECT pg_cancel_backend(%s)", [pid])
                stage.fault("wait for the standby cancelled")
            stage.wait(stage.dice.uniform(0.02, 0.1))
    stage.server = stage.standby
