"""Workers die by SIGKILL, between two statements and at any moment; others take their places."""

import signal

from tests.faults.stage import Stage

FAULTS = {"kill": 0.003}


def torment(stage: Stage) -> None:
    for _ in stage.moments(0.1, 0.8):
        stage.fault("kill", worker=stage.signal(signal.SIGKILL))
