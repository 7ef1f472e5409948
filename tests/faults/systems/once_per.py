"""Ours: ``once_per``, with periods of a fraction of a second."""

from typing import Any

from django_dblock import once_per
from tests.faults.worker import Worker

ERRORS = ()


def settle(worker: Worker, key: str, work: Any) -> str:
    """Run the work once for the period; return ``ran``, ``done`` or ``running``."""
    job = once_per(lambda _: key, key=worker.trial, keep=1)(lambda period: work())
    return job.run().state
