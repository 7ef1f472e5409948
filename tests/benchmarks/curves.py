"""How the cost grows: with processes, keys, rows, leases, waiters, and with what a page shows."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import (
    held_leases,
    keys_at_once,
    request_rows,
    services,
    shown_locks,
    waiting,
)
from tests.benchmarks.crowd import Crowd, once
from tests.benchmarks.growth import curve
from tests.benchmarks.measure import Size
from tests.benchmarks.ways import Way, ways

ROOT = Path(__file__).resolve().parents[2]
OWN = ("raw", "advisory_lock", "select_for_update")
"""The ways of the curves: peers are in the tables."""

LONGEST_WAIT = 180
"""Seconds for one design with so many waiters."""


def by_processes(size: Size) -> dict[str, Any]:
    crowd = Crowd("hot", "", writes=True)
    return _turns(
        "processes",
        "One hot key, a row read and written under it",
        size.curve_processes,
        lambda way, count: once(crowd, way, count, size.crowd_seconds / 2),
        OWN,
    )


def by_keys(size: Size) -> dict[str, Any]:
    def measured(way: Way, keys: int) -> dict[str, float]:
        crowd = Crowd("keys", "", writes=False, keys=keys)
        return once(crowd, way, size.processes, size.crowd_seconds / 2)

    return _turns(
        "keys",
        f"{size.processes} processes, keys at random, nothing done under them",
        size.curve_keys,
        measured,
        OWN[:2],
    )


def by_waiters(size: Size) -> list[dict[str, Any]]:
    """Run ``tests.benchmarks.waiting`` for each point; one that takes too long has no value."""
    found = {
        (design, count): one
        for count in size.waiters
        for design in waiting.COMPARED
        for one in _waited(design, count)
    }

    def figure(name: str, title: str, unit: str, field: str) -> dict[str, Any]:
        rows = [
            (
                design,
                label,
                [found.get((design, count), {}).get(field) for count in size.waiters],
            )
            for design, label in waiting.COMPARED.items()
        ]
        return curve(name, title, "waiters", unit, size.waiters, rows)

    idle = "while_waiting"
    return [
        figure("waiters-handover", "From a release to the next grant", "ms", "handover_ms_median"),
        figure(
            "waiters-statements", "Statements while they wait", "statements/s",
            f"statements_a_second_{idle}",
        ),
        figure("waiters-wal", "WAL while they wait", "bytes/s", f"wal_bytes_a_second_{idle}"),
    ]  # fmt: skip


def _waited(design: str, count: int) -> list[dict[str, Any]]:
    """Return the figures of one point, or nothing."""
    command = [sys.executable, "-m", waiting.__name__, "--designs", design, "--"]
    with services.process(
        [*command, str(count)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as started:
        timer = threading.Timer(LONGEST_WAIT, started.terminate)
        timer.daemon = True  # an interrupted run does not wait for it
        timer.start()
        lines = [*started.stdout]
        timer.cancel()
    return [json.loads(line) for line in lines]


CURVES: dict[str, Callable[[Size], list[dict[str, Any]]]] = {
    "curve-processes": lambda size: [by_processes(size)],
    "curve-keys": lambda size: [by_keys(size)],
    "curve-together": lambda size: [keys_at_once.by_keys_at_once(size)],
    "curve-rows": request_rows.curves,
    "curve-leases": held_leases.curves,
    "curve-waiters": by_waiters,
    "curve-shown": lambda size: [shown_locks.by_locks(size)],
}


def _turns(
    name: str,
    title: str,
    points: tuple[int, ...],
    measured: Callable[[Way, int], dict[str, float]],
    names: tuple[str, ...],
) -> dict[str, Any]:
    """Visit all points, all ways at each; a value is the turns per second of all processes."""
    taking_part = [way for way in ways() if way.name in names]

    found = [
        {way.name: measured(way, point)["turns_per_s"] for way in taking_part} for point in points
    ]
    rows = [(way.name, way.label, [values[way.name] for values in found]) for way in taking_part]
    return curve(name, title, name, "turns/s", points, rows)
