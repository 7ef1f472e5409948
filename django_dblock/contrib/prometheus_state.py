"""Prometheus gauges of the locks at the moment of a scrape, read from the server."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from django.db import Error, connections
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from django_dblock.coordination.latch import alias_for as latches_alias
from django_dblock.core.connection import connection_for
from django_dblock.core.namespace import namespace
from django_dblock.exceptions import UnsupportedDatabase
from django_dblock.fencing.lease_name import ROLES
from django_dblock.fencing.store import alias_for as leases_alias
from django_dblock.idempotency.store import alias_for as requests_alias
from django_dblock.inspect import (
    TableIsLocked,
    advisory_locks,
    awaited_latches,
    count_unfinished_requests,
    fenced_leases,
    short_wait,
)

logger = logging.getLogger("django_dblock.prometheus")


class StateCollector(Collector):
    """Gauges of the locks, leases and requests that are there at the moment of the scrape.

    Call ``REGISTRY.register(StateCollector())`` in one process for each database, because all
    processes would show the same. A scrape reads each gauge by one statement, in a transaction of
    its own that waits a second at most for a locked table, on connections of the scrape's thread,
    at the alias where the routers keep the table.

    Guarantees: if a database does not respond or is of another engine, the role has no right to a
    table, or a session has locked a table for itself, the scrape lacks only the gauges that can't
    be read. The error is logged to ``django_dblock.prometheus``. A scrape asks a database that does
    not respond once.

    Args:
        using: the database alias, as in :func:`django_dblock.inspect.advisory_locks`.
    """

    def __init__(self, using: str | None = None) -> None:
        self._using = using

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges without values, because registering must not query a database."""
        return [gauge.family() for gauge in _GAUGES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges with values read from the server."""
        ours = []
        silent = set()
        try:
            for gauge in _GAUGES:
                try:
                    alias = gauge.where(self._using)
                except UnsupportedDatabase as error:
                    _log(error.using, error)
                    continue
                if alias in silent:
                    continue
                if connections[alias].connection is None:
                    ours.append(connections[alias])
                try:
                    with namespace(""), short_wait(alias):  # counts need no tenant
                        family = gauge.measured(self._using, alias)
                except Error as error:
                    _log(alias, error)
                    if not _is_from_the_server(error):
                        silent.add(alias)
                else:
                    yield family
        finally:
            for connection in ours:  # the scrape's thread has no request whose end would close them
                connection.close()


def _is_from_the_server(error: Error) -> bool:
    """Return whether the server answered with this error; without an SQLSTATE it did not."""
    return isinstance(error, TableIsLocked) or bool(getattr(error.__cause__, "sqlstate", None))


def _log(alias: str, error: Error) -> None:
    logger.warning(
        "What is locked on %r could not be read: %s", alias, error, extra={"using": alias}
    )


def _alias(using: str | None) -> str:
    return connection_for(using).alias


_Counts: TypeAlias = Mapping[tuple[str, ...], int]
"""How many there are of each combination of labels."""


def _advisory(using: str | None) -> _Counts:
    return Counter(("held" if lock.granted else "wanted",) for lock in advisory_locks(using))


def _leases(using: str | None) -> _Counts:
    counts: Counter[tuple[str, ...]] = Counter()
    for lease in fenced_leases(using):
        counts[lease.kind, lease.state] += 1
        counts[lease.kind, "wanted"] += len(lease.waiting)
    return counts


def _latches(using: str | None) -> _Counts:
    latches = awaited_latches(using)
    waiters = sum(len(latch.waiting) for latch in latches)
    return {("closed",): len(latches), ("wanted",): waiters}


def _requests(using: str | None) -> _Counts:
    return {(state,): count for state, count in count_unfinished_requests(using).items()}


@dataclass(frozen=True, slots=True)
class _Gauge:
    """One gauge: its name and help, the labels it counts by, and how it is read from an alias."""

    name: str
    text: str
    labels: Mapping[str, tuple[str, ...]]
    where: Callable[[str | None], str]
    read: Callable[[str | None], _Counts]

    def family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.text, labels=("using", *self.labels))

    def measured(self, using: str | None, alias: str) -> GaugeMetricFamily:
        family, counts = self.family(), self.read(using)
        for values in product(*self.labels.values()):
            family.add_metric((alias, *values), counts.get(values, 0))
        return family


_GAUGES = (
    _Gauge(
        "dblock_advisory_locks",
        "Advisory locks in the database, other programs' locks included, by state.",
        {"state": ("held", "wanted")},
        _alias,
        _advisory,
    ),
    _Gauge(
        "dblock_leases",
        "Leases that nobody else can be granted, and waiters in their queues, by kind and state.",
        {"kind": ("fenced", *ROLES), "state": ("held", "delayed", "wanted")},
        leases_alias,
        _leases,
    ),
    _Gauge(
        "dblock_latches",
        "Closed latches that somebody waits for, and their waiters, by state.",
        {"state": ("closed", "wanted")},
        latches_alias,
        _latches,
    ),
    _Gauge(
        "dblock_unfinished_requests",
        "Requests with an idempotency key that have no response yet, by state.",
        {"state": ("leased", "free", "abandoned")},
        requests_alias,
        _requests,
    ),
)
