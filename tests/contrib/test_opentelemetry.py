"""OpenTelemetry: metrics and spans as the real SDK collects them in memory."""

import pytest
from django.db import connection
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from django_dblock import LockLost, advisory_lock, fenced_lock, force_release, signals
from django_dblock.contrib import opentelemetry, opentelemetry_spans
from django_dblock.contrib.receivers import HOLD_BUCKETS, WAIT_BUCKETS
from tests.contrib import events
from tests.helpers.locks import deadlock

pytestmark = pytest.mark.django_db(transaction=True)


class Collected:
    """Both providers, and what they have got."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self.reader])
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.traces.get_tracer("tests")

    def instrument(self, **options):
        opentelemetry.instrument(meter_provider=self.meters, tracer_provider=self.traces, **options)

    def metrics(self):
        """Each metric by its name: its unit, and its points by their attributes."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: (
                metric.unit,
                {tuple(sorted(p.attributes.items())): p for p in metric.data.data_points},
            )
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def spans(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def collected():
    collected = Collected()
    collected.instrument()
    yield collected
    opentelemetry.uninstrument()
    collected.meters.shutdown()
    collected.traces.shutdown()


def lock(**more):
    attributes = {"kind": "advisory", "key": "inventory", **more}
    named = {
        "dblock.lock.kind": attributes.pop("kind"),
        "dblock.lock.key": attributes.pop("key"),
        "dblock.database": "default",
    }
    if "outcome" in attributes:
        named["dblock.outcome"] = attributes["outcome"]
    if "error" in attributes:
        named["error.type"] = attributes["error"]
    if "reason" in attributes:
        named["dblock.lease.reason"] = attributes["reason"]
    return tuple(sorted(named.items()))


def test_every_signal_is_measured(collected, rival, observer):
    events.everything(rival, observer)
    found = collected.metrics()
    units = {name: unit for name, (unit, _) in found.items()}
    assert units == {
        "dblock.lock.acquire": "s",
        "dblock.lock.wait": "s",
        "dblock.lock.hold": "s",
        "dblock.lock.failures": "{failure}",
        "dblock.lease.lost": "{lease}",
        "dblock.lease.stale_writes": "{write}",
        "dblock.version.conflicts": "{conflict}",
        "dblock.version.retries": "{run}",
        "dblock.idempotency.requests": "{request}",
    }

    def point(name, attributes):
        return found[name][1][attributes]

    lease = {"kind": "fenced", "key": "nightly-sync"}
    assert point("dblock.lock.acquire", lock()).count == 3
    assert point("dblock.lock.wait", lock(outcome="acquired")).count == 3
    assert point("dblock.lock.wait", lock(outcome="acquired")).sum > 0
    assert point("dblock.lock.wait", lock(outcome="timeout")).count == 1
    assert point("dblock.lock.wait", lock(key="b", outcome="deadlock")).count == 1
    assert point("dblock.lock.hold", lock(outcome="committed")).count == 2
    assert point("dblock.lock.hold", lock(outcome="rolled_back")).count == 1
    assert point("dblock.lock.hold", lock(**lease, outcome="released")).count == 1
    assert point("dblock.lock.hold", lock(**lease, outcome="lost")).count == 3
    assert point("dblock.lock.failures", lock(error="LockTimeout")).value == 1
    assert point("dblock.lock.failures", lock(key="b", error="LockDeadlock")).value == 1
    assert point("dblock.lock.failures", lock(error="UnsafeIsolation")).value == 1
    assert point("dblock.lease.lost", lock(**lease, reason="taken")).value == 2
    assert point("dblock.lease.lost", lock(**lease, reason="expired")).value == 1
    [written] = found["dblock.lease.stale_writes"][1]
    assert written == (("dblock.database", "default"), ("dblock.model", "app.account"))
    [conflict] = found["dblock.version.conflicts"][1]
    assert conflict == (("dblock.model", "app.stock"),)
    [retried] = found["dblock.version.retries"][1]
    assert dict(retried)["code.function.name"] == "tests.contrib.events.stale.<locals>.again"
    requests = {
        (dict(attributes)["dblock.idempotency.mode"], dict(attributes)["dblock.outcome"]): p.value
        for attributes, p in found["dblock.idempotency.requests"][1].items()
    }
    assert requests == {
        ("atomic", "executed"): 1,
        ("atomic", "replayed"): 1,
        ("atomic", "key_reused"): 1,
        ("lease", "executed"): 1,
        ("lease", "taken_over"): 1,
    }


def test_histogram_buckets_are_in_seconds(collected):
    """Without them the SDK's own are for milliseconds, and all of it would be in the first."""
    events.advisory()
    found = collected.metrics()
    for name, bounds in (
        ("dblock.lock.acquire", WAIT_BUCKETS),
        ("dblock.lock.wait", WAIT_BUCKETS),
        ("dblock.lock.hold", HOLD_BUCKETS),
    ):
        for point in found[name][1].values():
            assert point.explicit_bounds == bounds


def test_no_span_or_metric_has_a_whole_key(collected, rival, observer):
    with collected.tracer.start_as_current_span("request"):
        events.everything(rival, observer)
    assert "sku-" not in collected.reader.get_metrics_data().to_json()
    assert collected.spans("request")
    for span in collected.exporter.get_finished_spans():
        assert "sku-" not in span.to_json()


def test_wait_span_lasts_as_long_as_the_wait(collected):
    with collected.tracer.start_as_current_span("request"):
        events.advisory()
        events.waited()
    [request], [wait] = collected.spans("request"), collected.spans("dblock.lock.wait")
    assert wait.parent.span_id == request.context.span_id
    assert request.start_time < wait.start_time < wait.end_time < request.end_time
    assert wait.attributes["dblock.lock.key"] == "inventory"
    assert wait.attributes["dblock.lock.shared"] is False
    assert wait.status.status_code is StatusCode.UNSET


def test_timed_out_wait_is_a_failed_span(collected, rival, observer):
    events.timed_out()
    deadlock(rival, observer)
    timeout, ended = collected.spans("dblock.lock.wait")
    for span, error in ((timeout, "LockTimeout"), (ended, "LockDeadlock")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == error


def test_waits_below_the_limit_make_no_span():
    collected = Collected()
    collected.instrument(spans_above=3600)
    try:
        events.waited()
    finally:
        opentelemetry.uninstrument()
    assert collected.exporter.get_finished_spans() == ()


class TestLoss:
    """It is noticed in another thread, which has no span of its own."""

    def test_loss_is_an_event_of_the_acquiring_span(self, collected):
        with collected.tracer.start_as_current_span("job"), pytest.raises(LockLost):
            with fenced_lock("nightly-sync", ttl=30) as lease:
                force_release("nightly-sync")
        [job] = collected.spans("job")
        [event] = job.events
        assert event.name == "dblock.lease.lost"
        assert event.attributes["dblock.lease.token"] == lease.token
        assert "operator" in event.attributes["dblock.reason"]

    def test_loss_after_that_span_is_a_linked_span(self, collected):
        block = fenced_lock("nightly-sync", ttl=30, heartbeat=False)
        with collected.tracer.start_as_current_span("job"):
            block.__enter__()
        force_release("nightly-sync")
        with pytest.raises(LockLost):
            block.__exit__(None, None, None)
        [job], [lost] = collected.spans("job"), collected.spans("dblock.lease.lost")
        assert lost.parent is None
        assert [link.context.span_id for link in lost.links] == [job.context.span_id]
        assert lost.status.status_code is StatusCode.ERROR

    def test_loss_without_any_span_is_a_span(self, collected):
        with pytest.raises(LockLost), fenced_lock("nightly-sync", ttl=30):
            force_release("nightly-sync")
        [lost] = collected.spans("dblock.lease.lost")
        assert lost.links == ()

    def test_released_leases_are_forgotten(self, collected):
        with collected.tracer.start_as_current_span("job"), fenced_lock("a", ttl=30):
            [taken_in] = _remembered()
            assert len(taken_in) == 1
        assert taken_in == {}

    def test_failed_releases_do_not_accumulate(self, collected, monkeypatch):
        """No signal tells of them."""
        monkeypatch.setattr(opentelemetry_spans, "_MOST_LEASES", 2)
        [taken_in] = _remembered()
        told = {"kind": "fenced", "keys": (("a",),), "using": "default", "name": "a",
                "took": 0.0, "waited": 0.0, "shared": False}  # fmt: skip
        with collected.tracer.start_as_current_span("job"):
            for token in (1, 2, 3):
                signals.lock_acquired.send(None, token=token, **told)
        assert [token for _, _, token in taken_in] == [2, 3]


def _remembered():
    """The leases whose spans are known, of whoever listens."""
    for _, receiver, *_ in signals.lock_lost.receivers:
        spans = getattr(receiver, "__self__", None)
        if hasattr(spans, "_taken_in"):
            yield spans._taken_in


def test_other_signals_are_events_of_the_current_span(collected):
    with collected.tracer.start_as_current_span("request"):
        events.stale()
        events.requested()
    [request] = collected.spans("request")
    names = [event.name for event in request.events]
    assert names == [
        "dblock.lease.lost",
        "dblock.lease.stale_write",
        "dblock.version.conflict",
        "dblock.version.retry",
        "dblock.idempotency.replay",
        "dblock.idempotency.refusal",
    ]


def test_instrument_and_uninstrument_are_idempotent(collected):
    collected.instrument()
    events.advisory()
    assert collected.metrics()["dblock.lock.acquire"][1][lock()].count == 2
    opentelemetry.uninstrument()
    opentelemetry.uninstrument()
    assert not signals.lock_acquired.receivers
    with advisory_lock("inventory"):
        pass
    assert collected.metrics()["dblock.lock.acquire"][1][lock()].count == 2
    assert not connection.in_atomic_block


def test_global_providers_without_an_sdk_do_no_harm():
    """Without an SDK they do nothing, and cost the lock nothing but that."""
    opentelemetry.instrument()
    try:
        events.advisory()
        events.waited()
    finally:
        opentelemetry.uninstrument()
