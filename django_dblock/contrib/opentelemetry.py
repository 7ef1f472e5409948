"""OpenTelemetry: metrics, spans and events of what happens to locks, versions and requests.

Needs the extra: ``pip install "django-dblock[opentelemetry]"``; the SDK and its exporters are the
project's. Call :func:`instrument` once in each process, in ``AppConfig.ready()``.
"""

from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import TracerProvider, get_tracer

from django_dblock import __version__
from django_dblock.contrib.opentelemetry_metrics import Metrics
from django_dblock.contrib.opentelemetry_spans import Spans
from django_dblock.contrib.receivers import KeyLabel, Listening, Receivers, first_part

__all__ = ["instrument", "uninstrument"]

_listening = [Listening(), Listening()]


def instrument(
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    key_label: KeyLabel = first_part,
    spans_above: float = 0.0,
) -> None:
    """Start to measure and trace; a second call changes nothing.

    Guaranteed: metrics and spans contain only the first part of a key (``inventory``), never the
    whole key; at most 200 such parts in a process, further parts are ``(other)``. A wait for a lock
    is a span, a child of the span in which the lock was requested. The loss of a lease is an event
    of the span in which the lease was acquired; if that span has ended, the loss is a span of its
    own, linked to it.

    Not guaranteed: the hold time of a lock that joined an open transaction, whose end no signal
    reports; see :data:`django_dblock.signals.lock_released`. ``try_advisory_lock`` is not measured.

    Args:
        meter_provider: the global one by default.
        tracer_provider: the global one by default.
        key_label: from the keys of a lock, a tuple of tuples, to ``dblock.lock.key``.
        spans_above: seconds; a shorter wait gets no span. The wait for a lease includes its
            statement.

    Source: OpenTelemetry semantic conventions, "Metrics" and "Recording errors".
    """
    meters, traces = _listening

    def measure() -> Receivers:
        meter = get_meter("django_dblock", __version__, meter_provider)
        return Metrics(meter, key_label).receivers()

    def trace() -> Receivers:
        tracer = get_tracer("django_dblock", __version__, tracer_provider)
        return Spans(tracer, key_label, spans_above).receivers()

    meters.start(measure)
    traces.start(trace)


def uninstrument() -> None:
    """Stop measuring and tracing; do nothing without :func:`instrument`."""
    for listening in _listening:
        listening.stop()
