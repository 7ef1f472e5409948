"""Workers are frozen for longer than a lease lasts: between two statements, and at any moment."""

from tests.faults.stage import Stage

FAULTS = {"stop": 0.004}


def pauses(ttl: float) -> tuple[float, float]:
    return ttl + 0.05, ttl * 1.6


def torment(stage: Stage) -> None:
    for _ in stage.moments(0.1, 0.8):
        stage.stop_for(stage.dice.uniform(*pauses(stage.trial.ttl)))
