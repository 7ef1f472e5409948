"""The OpenTelemetry instruments, which are updated by the package's signals."""

from typing import Any

from opentelemetry.metrics import Counter, Histogram, Meter

from django_dblock import signals
from django_dblock.contrib import receivers
from django_dblock.contrib.receivers import (
    FewLabels,
    Instrument,
    KeyLabel,
    Receivers,
    ended,
    function_name,
)


class Metrics:
    """The instruments; times are in seconds, in histograms with fixed buckets."""

    def __init__(self, meter: Meter, key_label: KeyLabel) -> None:
        self._label = FewLabels(key_label)
        self._took = self._histogram(meter, receivers.ACQUIRE)
        self._waited = self._histogram(meter, receivers.WAIT)
        self._held = self._histogram(meter, receivers.HOLD)
        self._failures = self._counter(meter, receivers.FAILURES)
        self._lost = self._counter(meter, receivers.LOST)
        self._stale_writes = self._counter(meter, receivers.STALE_WRITES)
        self._stale_objects = self._counter(meter, receivers.CONFLICTS)
        self._retries = self._counter(meter, receivers.RETRIES)
        self._requests = self._counter(meter, receivers.REQUESTS)

    @staticmethod
    def _histogram(meter: Meter, of: Instrument) -> Histogram:
        return meter.create_histogram(
            of.opentelemetry, of.unit, of.text, explicit_bucket_boundaries_advisory=of.buckets
        )

    @staticmethod
    def _counter(meter: Meter, of: Instrument) -> Counter:
        return meter.create_counter(of.opentelemetry, of.unit, of.text)

    def receivers(self) -> Receivers:
        """Return the receiver of each signal."""
        return {
            signals.lock_acquired: self._acquire,
            signals.lock_released: self._release,
            signals.lock_timeout: self._timeout,
            signals.lock_deadlock: self._deadlock,
            signals.lock_refused: self._refuse,
            signals.lock_lost: self._lose,
            signals.stale_write_refused: self._stale_write,
            signals.stale_object: self._stale_object,
            signals.conflict_retried: self._retry,
            signals.idempotent_executed: self._execute,
            signals.idempotent_replayed: self._replay,
            signals.idempotent_refused: self._refuse_request,
            signals.idempotent_taken_over: self._take_over,
        }

    def _lock(self, told: dict[str, Any], **more: str) -> dict[str, str]:
        return {**lock_attributes(told, self._label), **more}

    def _acquire(self, **told: Any) -> None:
        self._took.record(told["took"], self._lock(told))
        self._waited.record(told["waited"], self._lock(told, **{"dblock.outcome": "acquired"}))

    def _release(self, **told: Any) -> None:
        self._held.record(told["held"], self._lock(told, **{"dblock.outcome": ended(told)}))

    def _timeout(self, **told: Any) -> None:
        self._waited.record(told["waited"], self._lock(told, **{"dblock.outcome": "timeout"}))
        self._failures.add(1, self._lock(told, **{"error.type": "LockTimeout"}))

    def _deadlock(self, **told: Any) -> None:
        self._waited.record(told["waited"], self._lock(told, **{"dblock.outcome": "deadlock"}))
        self._failures.add(1, self._lock(told, **{"error.type": "LockDeadlock"}))

    def _refuse(self, **told: Any) -> None:
        self._failures.add(1, self._lock(told, **{"error.type": type(told["error"]).__name__}))

    def _lose(self, **told: Any) -> None:
        reason = "expired" if told["expired"] else "taken"
        self._lost.add(1, self._lock(told, **{"dblock.lease.reason": reason}))

    def _stale_write(self, *, model: str, using: str, **_: Any) -> None:
        self._stale_writes.add(1, {"dblock.model": model, "dblock.database": using})

    def _stale_object(self, *, sender: Any, **_: Any) -> None:
        self._stale_objects.add(1, {"dblock.model": sender._meta.label_lower})  # noqa: SLF001 - Django's

    def _retry(self, *, sender: Any, error: Exception, **_: Any) -> None:
        name = function_name(sender)
        self._retries.add(1, {"code.function.name": name, "error.type": type(error).__name__})

    def _execute(self, **told: Any) -> None:
        self._request(told, "executed")

    def _replay(self, **told: Any) -> None:
        self._request(told, "replayed")

    def _refuse_request(self, **told: Any) -> None:
        self._request(told, told["code"])

    def _take_over(self, **told: Any) -> None:
        self._request(told, "taken_over")

    def _request(self, told: dict[str, Any], outcome: str) -> None:
        attributes = {
            "dblock.idempotency.mode": told["mode"],
            "dblock.database": told["using"],
            "dblock.outcome": outcome,
        }
        self._requests.add(1, attributes)


def lock_attributes(told: dict[str, Any], label: KeyLabel) -> dict[str, str]:
    """Return the attributes of a lock; never the whole key."""
    return {
        "dblock.lock.kind": told["kind"],
        "dblock.lock.key": label(told["keys"]),
        "dblock.database": told["using"],
    }
