"""What a curve is in the JSON, and how its points are timed: all ways take turns at each point."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any


def curve(
    name: str,
    title: str,
    x: str,
    unit: str,
    points: Sequence[int],
    rows: Iterable[tuple[str, str, Sequence[float | None]]],
) -> dict[str, Any]:
    """Return a curve.

    Args:
        name: how the picture's file is called.
        title: what it shows.
        x: what grows.
        unit: of the values.
        points: of ``x``.
        rows: a name, a label and the values of each way; None where it was not measured.
    """
    return {
        "name": name,
        "title": title,
        "x": x,
        "unit": unit,
        "points": list(points),
        "rows": [
            {"name": way, "label": label, "values": [_rounded(value) for value in values]}
            for way, label, values in rows
        ],
    }


def timed(
    ways: Mapping[str, Callable[[], object]], *, times: int, seconds: float
) -> dict[str, float]:
    """Return the median time of each way in microseconds.

    Args:
        ways: what to call, by name.
        times: rounds, at most.
        seconds: after which no further round begins; three are run in any case.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for name in names:  # caches fill
        ways[name]()
    end = time.monotonic() + seconds
    for turn in range(times):
        if turn >= 3 and time.monotonic() > end:
            break
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            started = time.perf_counter()
            ways[name]()
            taken[name].append(1e6 * (time.perf_counter() - started))
    return {name: median(found) for name, found in taken.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
