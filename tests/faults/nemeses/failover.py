"""The primary dies, and its synchronous standby takes its place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.nemeses import pair
from tests.faults.stage import Stage

OWN_SERVER = True


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    with pair.running(stage) as database:
        yield database


def torment(stage: Stage) -> None:
    stage.wait(stage.trial.seconds * stage.dice.uniform(0.3, 0.6))
    stage.fault("failover")
    stage.server.kill()
    stage.standby.run("pg_ctl", "promote", "-w", "-D", str(stage.standby.folder))
    stage.fault("back")
    stage.server = stage.standby
