"""Interleaved rounds: all rows of a scenario take turns, so that a busy machine is busy for all."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from statistics import median, quantiles
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed

from tests.benchmarks import sent


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        seconds: for each scenario.
        crowd_rounds, crowd_seconds, processes: the crowd at a hot key.
        curve_processes, curve_keys, curve_together: the points of the curves by processes at one
            key, by keys that they spread over, and by keys that are locked at once.
        rows: the points of the curve by idempotency rows.
        leases: the points of the curve by leases that a process holds.
        waiters: the points of the curve by waiters for one name.
        shown: the points of the curve by locks that a page or a list shows.
        pgbench: whether the database's own limit is measured, too.
        least_rounds: of a scenario, however long they take.
    """

    name: str
    seconds: float
    crowd_rounds: int
    crowd_seconds: float
    processes: int
    curve_processes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    curve_keys: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000)
    curve_together: tuple[int, ...] = (1, 10, 100, 1_000)
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    leases: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    waiters: tuple[int, ...] = (1, 10, 100, 1_000)
    shown: tuple[int, ...] = (10, 100, 1_000, 10_000)
    pgbench: bool = False
    least_rounds: int = 3


SIZES = {
    size.name: size
    for size in (
        Size(
            "smoke",
            seconds=0.1,
            crowd_rounds=1,
            crowd_seconds=0.1,
            processes=2,
            curve_processes=(1, 2),
            curve_keys=(1, 10),
            curve_together=(1, 10),
            rows=(10, 100),
            leases=(1, 10),
            waiters=(2,),
            shown=(10, 20),
            least_rounds=2,
        ),
        Size("default", seconds=8, crowd_rounds=4, crowd_seconds=1.5, processes=8),
        Size(
            "long",
            seconds=30,
            crowd_rounds=7,
            crowd_seconds=2,
            processes=8,
            rows=(10_000, 100_000, 1_000_000, 10_000_000),
            pgbench=True,
        ),
    )
}


@dataclass(frozen=True)
class Row:
    """One way to do what the scenario is about.

    Attributes:
        name: how targets and plots call it.
        label: how people call it.
        call: what is timed; it gets the number of the call, for a key of its own.
        settings: Django settings it needs, as if they stood in the settings module.
        peer: whether it stands for somebody else's way, to be compared with ours.
        counted: whether Django sees what it sends.
        within: entered for its turn in a round, outside of the time.
        alias: the database alias it uses, for counting; the scenario's by default.
    """

    name: str
    label: str
    call: Callable[[int], object]
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer: bool = False
    counted: bool = True
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    alias: str | None = None


@dataclass(frozen=True)
class Scenario:
    """Rows that do the same job; the first is the limit that the others are compared with.

    Attributes:
        around: entered before and left after each call, outside of the time.
        calls: calls of one row in one round.
        alias: the database, for counting what is sent.
        limit: what the first row is, in the table's "x raw".
    """

    name: str
    title: str
    rows: list[Row]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    calls: int = 20
    alias: str = "default"
    limit: str = "raw"


def timed(scenario: Scenario, size: Size) -> dict[str, Any]:
    """Run rounds for the size's seconds, and a least number; return what the JSON says of it."""
    numbers = count(1)
    counts = {row.name: _sent(scenario, row, numbers) for row in scenario.rows}
    times: dict[str, list[list[float]]] = {row.name: [] for row in scenario.rows}
    _round(scenario, numbers, 0)  # caches fill, connections open
    end = time.monotonic() + size.seconds
    rounds = 0
    while rounds < size.least_rounds or time.monotonic() < end:
        for name, taken in _round(scenario, numbers, rounds).items():
            times[name].append(taken)
        rounds += 1
    limit = [median(taken) for taken in times[scenario.rows[0].name]]
    return {
        "name": scenario.name,
        "title": scenario.title,
        "limit": scenario.limit,
        "rounds": rounds,
        "calls_per_round": scenario.calls,
        "rows": [
            {
                "name": row.name,
                "label": row.label,
                "peer": row.peer,
                **_statistics(times[row.name], limit),
                **counts[row.name],
            }
            for row in scenario.rows
        ],
    }


def _round(scenario: Scenario, numbers: Iterator[int], turn: int) -> dict[str, list[float]]:
    first = turn % len(scenario.rows)  # nobody always comes after the same neighbour
    taken: dict[str, list[float]] = {}
    for row in [*scenario.rows[first:], *scenario.rows[:first]]:
        with configured(row.settings), row.within(), _no_garbage():
            taken[row.name] = [_once(scenario, row, next(numbers)) for _ in range(scenario.calls)]
    return taken


def _once(scenario: Scenario, row: Row, number: int) -> float:
    with scenario.around():
        started = time.perf_counter_ns()
        row.call(number)
        return (time.perf_counter_ns() - started) / 1000


def _sent(scenario: Scenario, row: Row, numbers: Iterator[int]) -> dict[str, int | None]:
    with configured(row.settings), row.within():
        _once(scenario, row, next(numbers))  # without what only a first call sends
        with scenario.around(), sent.counted(row.alias or scenario.alias) as found:
            row.call(next(numbers))
    return found if row.counted else {**found, "statements": None}


def _statistics(rounds: list[list[float]], limit: list[float]) -> dict[str, Any]:
    times = [time for taken in rounds for time in taken]
    ratios = [median(taken) / raw for taken, raw in zip(rounds, limit, strict=True)]
    low, middle, high = quantiles(times, n=4)
    ratio_low, ratio, ratio_high = quantiles(ratios, n=4)
    return {
        "median_us": round(middle, 1),
        "quartiles_us": [round(low, 1), round(high, 1)],
        "min_us": round(min(times), 1),
        "ratio": round(ratio, 3),
        "ratio_quartiles": [round(ratio_low, 3), round(ratio_high, 3)],
    }


@contextmanager
def configured(values: Mapping[str, Any]) -> Iterator[None]:
    """Set them directly: what override_settings puts before them makes every look-up slower."""
    for name, value in values.items():
        setattr(settings, name, value)
        setting_changed.send(Row, setting=name, value=value, enter=True)
    try:
        yield
    finally:
        for name in values:
            delattr(settings, name)
            setting_changed.send(Row, setting=name, value=None, enter=False)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """As timeit does: a collection would be charged to whoever happens to be running."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
