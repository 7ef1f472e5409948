"""What the metrics integrations share: the instruments, the labels and the receivers."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.dispatch import Signal

from django_dblock.core.connection import after_fork_in_child
from django_dblock.keys import Key, is_instance

KeyLabel = Callable[[tuple[Key, ...]], str]
"""Returns the label for a lock in metrics, from the lock's keys."""

Receivers = Mapping[Signal, Callable[..., None]]

WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds, from a free lock to the wait after which a request gives up."""

HOLD_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400)
"""Seconds, from the update of a row to a nightly job."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric, for both Prometheus and OpenTelemetry.

    Attributes:
        prometheus: the name in Prometheus, without the suffix of a counter.
        opentelemetry: the name in OpenTelemetry.
        unit: OpenTelemetry's unit; in Prometheus it is part of the name.
        text: what the metric counts or measures.
        buckets: the bounds of a histogram; None for a counter.
    """

    prometheus: str
    opentelemetry: str
    unit: str
    text: str
    buckets: tuple[float, ...] | None = None


ACQUIRE = Instrument(
    "dblock_lock_acquire_seconds", "dblock.lock.acquire", "s",
    "Time to acquire a lock, waiting included.", WAIT_BUCKETS,
)  # fmt: skip
WAIT = Instrument(
    "dblock_lock_wait_seconds", "dblock.lock.wait", "s",
    "Time spent waiting for other holders of the lock, by outcome.", WAIT_BUCKETS,
)  # fmt: skip
HOLD = Instrument(
    "dblock_lock_hold_seconds", "dblock.lock.hold", "s",
    "Time a lock was held, by how it ended.", HOLD_BUCKETS,
)  # fmt: skip
FAILURES = Instrument(
    "dblock_lock_failures", "dblock.lock.failures", "{failure}",
    "Lock attempts that failed, by error.",
)  # fmt: skip
LOST = Instrument(
    "dblock_leases_lost", "dblock.lease.lost", "{lease}",
    "Leases that were lost while they were held, by reason.",
)  # fmt: skip
STALE_WRITES = Instrument(
    "dblock_stale_writes", "dblock.lease.stale_writes", "{write}",
    "Fenced writes that were refused because the lease was stale or the row had been deleted.",
)  # fmt: skip
CONFLICTS = Instrument(
    "dblock_stale_objects", "dblock.version.conflicts", "{conflict}",
    "Versioned writes that were refused because the row had been changed or deleted.",
)  # fmt: skip
RETRIES = Instrument(
    "dblock_conflict_retries", "dblock.version.retries", "{run}",
    "Function calls that were repeated after a conflict.",
)  # fmt: skip
REQUESTS = Instrument(
    "dblock_idempotent_requests", "dblock.idempotency.requests", "{request}",
    "Requests with an idempotency key, by outcome.",
)  # fmt: skip

INSTRUMENTS = (
    ACQUIRE, WAIT, HOLD, FAILURES, LOST, STALE_WRITES, CONFLICTS, RETRIES, REQUESTS,
)  # fmt: skip
"""Every metric that the signals move."""

MOST_LABELS = 200
"""Different labels for keys in one process; further labels become ``OTHER``."""

OTHER = "(other)"


def first_part(keys: tuple[Key, ...]) -> str:
    """Return the kind of the locked object: the first part of the keys, ``inventory``.

    For a model instance the result is the model's label; for a number, a date or a UUID its type;
    for several keys that begin differently ``(several)``.
    """
    found = {_word(key[0]) for key in keys}
    return found.pop() if len(found) == 1 else "(several)"


def _word(part: Any) -> str:
    part = getattr(part, "value", part) if isinstance(part, str) else part  # an Enum's
    if isinstance(part, str):
        return str(part)
    if is_instance(part):
        return str(part._meta.label_lower)  # noqa: SLF001 - Django's documented API
    return type(part).__name__


class FewLabels:
    """Labels for keys, at most ``MOST_LABELS`` of them, because each label is a time series.

    A key like ``advisory_lock(f"user-{pk}")`` has its number in its first part, and would make a
    time series for each user.
    """

    def __init__(self, label: KeyLabel) -> None:
        self._label = label
        self._known: set[str] = set()

    def __call__(self, keys: tuple[Key, ...]) -> str:
        """Return the label of the keys, or ``(other)`` if there are too many labels."""
        word = self._label(keys)
        if word not in self._known:
            if len(self._known) >= MOST_LABELS:
                return OTHER
            self._known.add(word)
        return word


def function_name(function: Any) -> str:
    """Return a function's qualified name; for a partial, which has no name, its type's."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def ended(told: dict[str, Any]) -> str:
    """Return how a lock or a lease ended, from the arguments of ``lock_released``."""
    if "lost" in told:
        return "lost" if told["lost"] else "released"
    return {True: "committed", False: "rolled_back", None: "unknown"}[told["committed"]]


class Listening:
    """The switch of an integration: its receivers are connected all together, or not at all.

    Threads may switch it concurrently; a forked child keeps the parent's receivers connected.
    """

    def __init__(self) -> None:
        self._receivers: Receivers | None = None
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        self._mutex = threading.Lock()  # another thread may have held the mutex during the fork

    def start(self, make: Callable[[], Receivers]) -> bool:
        """Connect the receivers of ``make()``; return False, without calling it, if already on."""
        with self._mutex:
            if self._receivers is not None:
                return False
            self._receivers = make()
            for signal, receiver in self._receivers.items():
                signal.connect(receiver, weak=False, dispatch_uid=(id(self), id(signal)))
            return True

    def stop(self) -> bool:
        """Disconnect the receivers; return False if already off."""
        with self._mutex:
            if self._receivers is None:
                return False
            for signal in self._receivers:
                signal.disconnect(dispatch_uid=(id(self), id(signal)))
            self._receivers = None
            return True
