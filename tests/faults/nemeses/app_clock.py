"""Workers whose clocks are an hour off, each in another direction; each new life has another."""

from tests.faults.nemeses import kill
from tests.faults.stage import Stage

PRELOAD = True
FAULTS = {"kill": 0.001}


def environment(stage: Stage, worker: int, life: int) -> dict[str, str]:
    skew = [-3600, 0, 3600][(worker + life) % 3] + stage.dice.randint(-60, 60)
    stage.fault("clock set", worker=worker, seconds=skew)
    return {"FAKETIME": f"{skew:+d}"}


def torment(stage: Stage) -> None:
    kill.torment(stage)
