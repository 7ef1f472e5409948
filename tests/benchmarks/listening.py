"""What it costs that locks tell about themselves: with nobody listening, and with somebody.

The limit is our own lock, with its sending taken out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from django_dblock import advisory_lock
from django_dblock.advisory.lock import AdvisoryBlock
from django_dblock.contrib import opentelemetry, prometheus
from tests.benchmarks import tables
from tests.benchmarks.measure import Row, Scenario

SLOW = {"DBLOCK_SLOW_WAIT": timedelta(hours=1), "DBLOCK_SLOW_HOLD": timedelta(hours=1)}


def scenario() -> Scenario:
    rows = [
        Row("silent", "advisory_lock that sends nothing", _lock, within=_silent),
        Row("nobody", "nobody listens", _lock),
        Row("slow", "DBLOCK_SLOW_WAIT and _HOLD set", _lock, SLOW),
        Row("prometheus", "Prometheus", _lock, within=_prometheus),
        Row("opentelemetry", "OpenTelemetry, metrics and spans", _lock, within=_opentelemetry),
    ]
    return Scenario("listening", "A lock that is listened to", rows, limit="silent")


def _lock(number: int) -> None:
    with advisory_lock("inventory", tables.row_of(number)):
        pass


@contextmanager
def _silent() -> Iterator[None]:
    def send(*_: Any, **__: Any) -> None:
        """Look at no signal."""

    with mock.patch.object(AdvisoryBlock, "_send", send):
        yield


@contextmanager
def _prometheus() -> Iterator[None]:
    prometheus.instrument(registry=CollectorRegistry())
    try:
        yield
    finally:
        prometheus.uninstrument()


@contextmanager
def _opentelemetry() -> Iterator[None]:
    meters, traces = MeterProvider([InMemoryMetricReader()]), TracerProvider()
    opentelemetry.instrument(meter_provider=meters, tracer_provider=traces)
    try:
        yield
    finally:
        opentelemetry.uninstrument()
        meters.shutdown()
        traces.shutdown()
