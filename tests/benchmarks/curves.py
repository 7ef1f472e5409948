"""How the cost grows: with the processes at one key, and with the keys they spread over."""

from collections.abc import Callable
from typing import Any

from tests.benchmarks.crowd import Crowd, once
from tests.benchmarks.measure import Size
from tests.benchmarks.ways import ways

PROCESSES = (1, 2, 4, 8, 16, 32)
KEYS = (1, 10, 100, 1_000, 10_000, 100_000)
ROUNDS = 3


def by_processes(size: Size) -> dict[str, Any]:
    crowd = Crowd("hot", "", writes=True)
    return _curve(
        "processes",
        "One hot key, a row read and written under it",
        PROCESSES,
        lambda way, count: once(crowd, way, count, size.crowd_seconds / 2),
        ways(),
    )


def by_keys(size: Size) -> dict[str, Any]:
    def measured(way: Any, keys: int) -> dict[str, float]:
        crowd = Crowd("keys", "", writes=False, keys=keys)
        return once(crowd, way, size.processes, size.crowd_seconds / 2)

    return _curve(
        "keys",
        f"{size.processes} processes, keys at random, nothing done under them",
        KEYS,
        measured,
        [way for way in ways() if way.name != "select_for_update"],
    )


def _curve(
    name: str,
    title: str,
    points: tuple[int, ...],
    measured: Callable[[Any, int], dict[str, float]],
    taking_part: list[Any],
) -> dict[str, Any]:
    """Visit all points ROUNDS times, all ways at each; of each figure the median round by turns."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {way.name: {} for way in taking_part}
    for _ in range(ROUNDS):
        for point in points:
            for way in taking_part:
                found[way.name].setdefault(point, []).append(measured(way, point))
    return {
        "name": name,
        "title": title,
        "points": list(points),
        "rows": [
            {
                "name": way.name,
                "label": way.label,
                "values": [
                    sorted(rounds, key=lambda result: result["turns_per_s"])[ROUNDS // 2]
                    for rounds in found[way.name].values()
                ],
            }
            for way in taking_part
        ],
    }
