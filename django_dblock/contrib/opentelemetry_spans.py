"""The OpenTelemetry spans and events, which are made from the package's signals."""

import time
from typing import Any

from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer, get_current_span

from django_dblock import signals
from django_dblock.contrib.opentelemetry_metrics import lock_attributes
from django_dblock.contrib.receivers import FewLabels, KeyLabel, Receivers

_Grant = tuple[Any, ...]

_MOST_LEASES = 1_000
"""Leases whose spans are kept at most, because a failed release sends no signal to remove one."""


class Spans:
    """A span for each wait; events in the application's own spans for everything else."""

    def __init__(self, tracer: Tracer, key_label: KeyLabel, above: float) -> None:
        self._tracer = tracer
        self._label = FewLabels(key_label)
        self._above = above
        self._taken_in: dict[_Grant, Span] = {}  # until the lease is released or lost

    def receivers(self) -> Receivers:
        """Return the receiver of each signal."""
        return {
            signals.lock_acquired: self._acquired,
            signals.lock_released: self._released,
            signals.lock_timeout: self._timeout,
            signals.lock_deadlock: self._deadlock,
            signals.lock_lost: self._lost,
            signals.stale_write_refused: self._stale_write,
            signals.stale_object: self._stale_object,
            signals.conflict_retried: self._retried,
            signals.idempotent_replayed: self._replayed,
            signals.idempotent_refused: self._request_refused,
        }

    def _acquired(self, **told: Any) -> None:
        self._waited(told, None)
        span = get_current_span()
        if "token" in told and span.get_span_context().is_valid:
            if len(self._taken_in) >= _MOST_LEASES:
                self._taken_in.pop(list(self._taken_in)[0], None)  # noqa: RUF015 - other threads
            self._taken_in[_grant(told)] = span

    def _released(self, **told: Any) -> None:
        if "token" in told:
            self._taken_in.pop(_grant(told), None)

    def _timeout(self, **told: Any) -> None:
        self._waited(told, "LockTimeout")

    def _deadlock(self, **told: Any) -> None:
        self._waited(told, "LockDeadlock")

    def _waited(self, told: dict[str, Any], error: str | None) -> None:
        """Record the span of a wait that has ended; a wait is reported only at its end."""
        if told["waited"] <= self._above:
            return
        end = time.time_ns()
        attributes: dict[str, Any] = lock_attributes(told, self._label)
        attributes["dblock.lock.shared"] = told["shared"]
        if error is not None:
            attributes["error.type"] = error
        start = end - int(told["waited"] * 1_000_000_000)
        span = self._tracer.start_span("dblock.lock.wait", attributes=attributes, start_time=start)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(end)

    def _lost(self, **told: Any) -> None:
        attributes: dict[str, Any] = {
            **lock_attributes(told, self._label),
            "dblock.lease.token": told["token"],
            "dblock.reason": told["reason"],
        }
        span = self._taken_in.pop(_grant(told), None)
        if span is not None and span.is_recording():
            span.add_event("dblock.lease.lost", attributes)
            return
        links = [] if span is None else [Link(span.get_span_context())]
        with self._tracer.start_as_current_span(
            "dblock.lease.lost", attributes=attributes, links=links
        ) as alone:
            alone.set_status(Status(StatusCode.ERROR, told["reason"]))

    def _stale_write(self, *, model: str, reason: str, **_: Any) -> None:
        _event("dblock.lease.stale_write", {"dblock.model": model, "dblock.reason": reason})

    def _stale_object(self, *, sender: Any, **_: Any) -> None:
        _event("dblock.version.conflict", {"dblock.model": sender._meta.label_lower})  # noqa: SLF001 - Django's

    def _retried(self, *, error: Exception, attempt: int, delay: float, **_: Any) -> None:
        _event(
            "dblock.version.retry",
            {
                "error.type": type(error).__name__,
                "dblock.retry.attempt": attempt,
                "dblock.retry.delay": delay,
            },
        )

    def _replayed(self, *, mode: str, **_: Any) -> None:
        _event("dblock.idempotency.replay", {"dblock.idempotency.mode": mode})

    def _request_refused(self, *, mode: str, code: str, **_: Any) -> None:
        attributes = {"dblock.idempotency.mode": mode, "dblock.outcome": code}
        _event("dblock.idempotency.refusal", attributes)


def _event(name: str, attributes: dict[str, Any]) -> None:
    get_current_span().add_event(name, attributes)


def _grant(told: dict[str, Any]) -> _Grant:
    return (told["using"], told["name"], told["token"])
