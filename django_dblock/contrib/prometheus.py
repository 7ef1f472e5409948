"""Prometheus: counters and histograms of what happens to locks, versions and requests.

Needs the extra: ``pip install "django-dblock[prometheus]"``. Call :func:`instrument` once in each
process, in ``AppConfig.ready()``.
"""

from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from django_dblock import signals
from django_dblock.contrib import receivers
from django_dblock.contrib.prometheus_state import StateCollector
from django_dblock.contrib.receivers import (
    FewLabels,
    Instrument,
    KeyLabel,
    Listening,
    Receivers,
    ended,
    first_part,
    function_name,
)

__all__ = ["StateCollector", "instrument", "uninstrument"]

_listening = Listening()
_registered: list[tuple[CollectorRegistry, "_Metrics"]] = []


def instrument(*, registry: CollectorRegistry = REGISTRY, key_label: KeyLabel = first_part) -> None:
    """Start to count and time; a second call changes nothing.

    Guaranteed: there is a series for each *kind* of key (``inventory``), not for each key; at most
    200 kinds in a process, further kinds are counted as ``(other)``. Works in the client's
    multiprocess mode, and before or after a fork.

    Not guaranteed: the hold time of a lock that joined an open transaction, whose end no signal
    reports; see :data:`django_dblock.signals.lock_released`. ``try_advisory_lock`` is not measured.

    Args:
        registry: where the metrics are registered; a scrape shows it.
        key_label: from the keys of a lock, a tuple of tuples, to the value of the label ``key``.
    """

    def make() -> Receivers:
        metrics = _Metrics(registry, key_label)
        _registered.append((registry, metrics))
        return metrics.receivers()

    _listening.start(make)


def uninstrument() -> None:
    """Stop, and remove the metrics from the registry; do nothing without :func:`instrument`."""
    if _listening.stop():
        registry, metrics = _registered.pop()
        for metric in metrics.all:
            registry.unregister(metric)


class _Metrics:
    def __init__(self, registry: CollectorRegistry, key_label: KeyLabel) -> None:
        self._label = FewLabels(key_label)
        lock = ("kind", "key", "using")

        def histogram(of: Instrument, labels: tuple[str, ...]) -> Histogram:
            buckets = of.buckets or ()
            return Histogram(of.prometheus, of.text, labels, buckets=buckets, registry=registry)

        def counter(of: Instrument, labels: tuple[str, ...]) -> Counter:
            return Counter(of.prometheus, of.text, labels, registry=registry)

        self.took = histogram(receivers.ACQUIRE, lock)
        self.waited = histogram(receivers.WAIT, (*lock, "outcome"))
        self.held = histogram(receivers.HOLD, (*lock, "ended"))
        self.failures = counter(receivers.FAILURES, (*lock, "error"))
        self.lost = counter(receivers.LOST, (*lock, "reason"))
        self.stale_writes = counter(receivers.STALE_WRITES, ("model", "using"))
        self.stale_objects = counter(receivers.CONFLICTS, ("model",))
        self.retries = counter(receivers.RETRIES, ("function", "error"))
        self.requests = counter(receivers.REQUESTS, ("mode", "using", "outcome"))
        self.all = (self.took, self.waited, self.held, self.failures, self.lost,
                    self.stale_writes, self.stale_objects, self.retries, self.requests)  # fmt: skip

    def receivers(self) -> Receivers:
        return {
            signals.lock_acquired: self._acquired,
            signals.lock_released: self._released,
            signals.lock_timeout: self._timeout,
            signals.lock_deadlock: self._deadlock,
            signals.lock_refused: self._refused,
            signals.lock_lost: self._lost,
            signals.stale_write_refused: self._stale_write,
            signals.stale_object: self._stale_object,
            signals.conflict_retried: self._retried,
            signals.idempotent_executed: self._executed,
            signals.idempotent_replayed: self._replayed,
            signals.idempotent_refused: self._request_refused,
            signals.idempotent_taken_over: self._taken_over,
        }

    def _acquired(self, *, kind: str, keys: Any, using: str, **more: Any) -> None:
        key = self._label(keys)
        self.took.labels(kind, key, using).observe(more["took"])
        self.waited.labels(kind, key, using, "acquired").observe(more["waited"])

    def _released(self, *, kind: str, keys: Any, using: str, held: float, **more: Any) -> None:
        self.held.labels(kind, self._label(keys), using, ended(more)).observe(held)

    def _timeout(self, *, kind: str, keys: Any, using: str, waited: float, **_: Any) -> None:
        key = self._label(keys)
        self.waited.labels(kind, key, using, "timeout").observe(waited)
        self.failures.labels(kind, key, using, "LockTimeout").inc()

    def _deadlock(self, *, kind: str, keys: Any, using: str, waited: float, **_: Any) -> None:
        key = self._label(keys)
        self.waited.labels(kind, key, using, "deadlock").observe(waited)
        self.failures.labels(kind, key, using, "LockDeadlock").inc()

    def _refused(self, *, kind: str, keys: Any, using: str, error: Exception, **_: Any) -> None:
        self.failures.labels(kind, self._label(keys), using, type(error).__name__).inc()

    def _lost(self, *, kind: str, keys: Any, using: str, expired: bool, **_: Any) -> None:
        reason = "expired" if expired else "taken"
        self.lost.labels(kind, self._label(keys), using, reason).inc()

    def _stale_write(self, *, model: str, using: str, **_: Any) -> None:
        self.stale_writes.labels(model, using).inc()

    def _stale_object(self, *, sender: Any, **_: Any) -> None:
        self.stale_objects.labels(sender._meta.label_lower).inc()  # noqa: SLF001 - Django's

    def _retried(self, *, sender: Any, error: Exception, **_: Any) -> None:
        self.retries.labels(function_name(sender), type(error).__name__).inc()

    def _executed(self, *, mode: str, using: str, **_: Any) -> None:
        self.requests.labels(mode, using, "executed").inc()

    def _replayed(self, *, mode: str, using: str, **_: Any) -> None:
        self.requests.labels(mode, using, "replayed").inc()

    def _request_refused(self, *, mode: str, using: str, code: str, **_: Any) -> None:
        self.requests.labels(mode, using, code).inc()

    def _taken_over(self, *, mode: str, using: str, **_: Any) -> None:
        self.requests.labels(mode, using, "taken_over").inc()
