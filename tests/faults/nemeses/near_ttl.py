"""The cruel one: workers are frozen for just about as long as a lease lasts."""

from tests.faults.stage import Stage

FAULTS = {"stop": 0.004}


def pauses(ttl: float) -> tuple[float, float]:
    return ttl - 0.03, ttl + 0.03


def torment(stage: Stage) -> None:
    for _ in stage.moments(0.05, 0.5):
        stage.stop_for(stage.dice.uniform(*pauses(stage.trial.ttl)))
