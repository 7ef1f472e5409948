"""The same row, by the clock of whoever asks."""

from datetime import UTC, datetime

from tests.faults.systems.ttl_row import holding
from tests.faults.worker import Worker

ERRORS = ()


def hold(worker: Worker, name: str) -> object:
    return holding(worker, name, lambda: datetime.now(UTC))
