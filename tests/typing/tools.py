"""What users write in their tests and in ready(), seen by mypy --strict; never run."""

from datetime import datetime
from typing import Any, assert_type

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry

from django_dblock import (
    Lease,
    LockTimeout,
    fenced_rwlock,
    fenced_semaphore,
    leadership,
    partitions,
)
from django_dblock.contrib import opentelemetry, prometheus
from django_dblock.testing import (
    assert_no_locks,
    database_time,
    hold_lease,
    hold_lock,
    race,
    take_away,
)


def helpers() -> None:
    with hold_lock("inventory", "sku-1", shared=True, using="default", timeout=1) as busy:
        assert_type(busy, hold_lock)
        assert_type(busy.pid, int)
        assert_type(busy.waiters(), list[int])
        assert_type(busy.until_waited_for(2, within=1.5), list[int])
    assert_type(race(8, lambda: None, catch=LockTimeout), list[Any])
    race(2, print, catch=(LockTimeout, ValueError), using="other", timeout=5)
    assert_no_locks("default", within=0)
    with hold_lease(fenced_semaphore("api", permits=2, ttl=30)) as held:
        assert_type(held, hold_lease)
        assert_type(held.waiters(), list[str])
        assert_type(held.until_waited_for(2, within=1.5), list[str])
        held.release()
    hold_lease(fenced_rwlock("catalogue").write(ttl=30))
    hold_lease(partitions("outbox", count=4, ttl=30))
    hold_lease(leadership("sync", ttl=30))


def takes(lease: Lease, moment: datetime) -> None:
    take_away(lease, noticed=True)
    with database_time(moment):
        pass


def country(keys: tuple[tuple[Any, ...], ...]) -> str:
    return str(keys[0][1])


def metrics(meters: MeterProvider, tracers: TracerProvider) -> None:
    prometheus.instrument()
    prometheus.instrument(registry=CollectorRegistry(), key_label=country)
    prometheus.uninstrument()
    REGISTRY.register(prometheus.StateCollector("default"))
    opentelemetry.instrument(
        meter_provider=meters, tracer_provider=tracers, key_label=country, spans_above=0.05
    )
    opentelemetry.uninstrument()
