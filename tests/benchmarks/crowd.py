"""Many processes want keys at once, for a fixed time: throughput, fairness and waiting."""

import random
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from django.db import connection

from tests.app.models import Counter
from tests.benchmarks import peers
from tests.benchmarks.measure import Size
from tests.benchmarks.ways import Way, ways
from tests.helpers.processes import race

EDGE = 0.25
"""Seconds of load before and after the time that counts, so that nobody is ever alone in it."""


@dataclass(frozen=True)
class Crowd:
    """What the processes do: on how many keys, and whether a row is read and written under them.

    With ``keys`` of 1 the row is read, added to in Python and written back: each turn that was not
    alone loses an update, and the result says how many.
    """

    name: str
    title: str
    writes: bool = True
    keys: int = 1


def timed(crowd: Crowd, size: Size) -> dict[str, Any]:
    """Let all ways take turns for some rounds; return what the JSON says of it."""
    # select_for_update locks a row, not a key: without a row there is nothing it could do.
    taking_part = [way for way in ways() if crowd.writes or way.name != "select_for_update"]
    rounds: dict[str, list[dict[str, float]]] = {way.name: [] for way in taking_part}
    for turn in range(size.crowd_rounds):
        first = turn % len(taking_part)
        for way in [*taking_part[first:], *taking_part[:first]]:
            rounds[way.name].append(once(crowd, way, size.processes, size.crowd_seconds))
    limit = [result["turns_per_s"] for result in rounds[taking_part[0].name]]
    return {
        "name": crowd.name,
        "title": crowd.title,
        "processes": size.processes,
        "seconds_per_round": size.crowd_seconds,
        "rounds": size.crowd_rounds,
        "rows": [_summary(way, rounds[way.name], limit) for way in taking_part],
    }


def once(crowd: Crowd, way: Way, processes: int, seconds: float) -> dict[str, float]:
    """Run the processes of one way; return its figures."""
    before = _total()
    results = race(processes, _work, way.name, crowd, seconds)
    waits = sorted(wait for result in results for wait in result["waits"])
    counts = [len(result["waits"]) for result in results]
    everything = sum(result["turns"] for result in results)
    return {
        "turns_per_s": round(sum(counts) / seconds, 1),
        "busiest_to_idlest": round(max(counts) / max(1, min(counts)), 2),
        "wait_p50_ms": percentile(waits, 50),
        "wait_p99_ms": percentile(waits, 99),
        "wait_max_ms": percentile(waits, 100),
        "lost_updates": everything - (_total() - before) if crowd.writes else 0,
    }


def _work(process: int, name: str, crowd: Crowd, seconds: float) -> dict[str, Any]:
    """In a process of its own: one turn after the other, none of them thinking in between."""
    [way] = [way for way in ways() if way.name == name]
    if peers.has_redis():
        peers.redis_client("default").ping()
    chance = random.Random(process)
    waits: list[float] = []
    turns = 0
    edge = min(EDGE, seconds)
    begins = time.perf_counter() + edge
    ends = begins + seconds
    while (asked := time.perf_counter()) < ends + edge:
        number = chance.randrange(crowd.keys) + 1
        with way.hold("default", number):
            had = time.perf_counter()
            if crowd.writes:
                _add_one(number)
        turns += 1
        if begins <= asked < ends:
            waits.append(1000 * (had - asked))
    return {"turns": turns, "waits": waits}


def _add_one(number: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT value FROM app_counter WHERE id = %s", [number])
        [value] = cursor.fetchone()
        cursor.execute("UPDATE app_counter SET value = %s WHERE id = %s", [value + 1, number])


def _total() -> int:
    return sum(Counter.objects.values_list("value", flat=True))


def percentile(ordered: list[float], percent: int) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3)


def _summary(way: Way, rounds: list[dict[str, float]], limit: list[float]) -> dict[str, Any]:
    ratios = [result["turns_per_s"] / raw for result, raw in zip(rounds, limit, strict=True) if raw]
    return {
        "name": way.name,
        "label": way.label,
        "peer": way.peer,
        **{name: round(median(result[name] for result in rounds), 3) for name in rounds[0]},
        "turns_per_s_spread": [
            min(result["turns_per_s"] for result in rounds),
            max(result["turns_per_s"] for result in rounds),
        ],
        "ratio": round(median(ratios), 3) if ratios else None,
        "lost_updates": sum(result["lost_updates"] for result in rounds),
    }
