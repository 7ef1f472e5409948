"""Ours: ``latch``, counted down in the part's own transaction."""

from typing import Any

from django_dblock import latch
from tests.faults.worker import Worker

ERRORS = ()


def count_down(worker: Worker, name: str, part: int, parties: int) -> None:
    latch(name, parties=parties).count_down(part)


def is_open(worker: Worker, name: str, parties: int) -> Any:
    return latch(name, parties=parties).done
