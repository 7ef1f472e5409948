"""What operations do around a fault: throughput and wait, by kind of fault."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.faults.history import OK, Operation

BIN, BEFORE, AFTER = 0.1, 1.0, 2.0
"""Seconds."""


def around(
    operations: list[Operation], faults: Iterable[dict[str, Any]], until: float
) -> dict[str, dict[str, Any]]:
    """By kind of fault, sums over its faults: operations that ended, and the longest wait.

    A bin is compared only where the workers still ran.
    """
    ended = sorted((o.ended, o.ended - o.began) for o in operations if o.outcome == OK and o.ended)
    ends = [end for end, _ in ended]
    found: dict[str, dict[str, Any]] = defaultdict(_empty)
    for fault in faults:
        sums = found[fault["kind"]]
        sums["faults"] += 1
        for place, offset in enumerate(offsets()):
            start = fault["at"] + offset
            if not ends or start < ends[0] or start + BIN > until:
                continue
            low, high = bisect_left(ends, start), bisect_right(ends, start + BIN)
            sums["bins"][place] += 1
            sums["ended"][place] += high - low
            waits = [wait for _, wait in ended[low:high]]
            sums["wait"][place] += max(waits, default=0.0)
            sums["waits"][place] += bool(waits)
    return dict(found)


def offsets() -> list[float]:
    """Where the bins begin, in seconds from the fault."""
    return [round(-BEFORE + BIN * place, 2) for place in range(round((BEFORE + AFTER) / BIN))]


def curves(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Add the trials up: by kind of fault, operations a second, and the mean longest wait in ms."""
    total: dict[str, dict[str, Any]] = defaultdict(_empty)
    for result in results:
        for kind, sums in result["around"].items():
            total[kind]["faults"] += sums["faults"]
            for name in ("bins", "ended", "wait", "waits"):
                total[kind][name] = [
                    a + b for a, b in zip(total[kind][name], sums[name], strict=True)
                ]
    return {
        kind: {
            "faults": sums["faults"],
            "per_second": _divided(sums["ended"], sums["bins"], 1 / BIN),
            "longest_wait_ms": _divided(sums["wait"], sums["waits"], 1000),
        }
        for kind, sums in total.items()
        if kind != "back"
    }


def _empty() -> dict[str, Any]:
    count = len(offsets())
    return {"faults": 0, **{name: [0] * count for name in ("bins", "ended", "wait", "waits")}}


def _divided(sums: list[float], counts: list[int], factor: float) -> list[float | None]:
    return [
        round(each / count * factor, 2) if count else None
        for each, count in zip(sums, counts, strict=True)
    ]
