"""The targets, as ratios. Judged, never asserted."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import ge, le
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure of one row of one scenario, and the limit for it.

    Attributes:
        relation: ``le`` where less is better, ``ge`` where more is.
    """

    title: str
    scenario: str
    row: str
    figure: Callable[[dict[str, Any]], float]
    limit: float
    relation: Callable[[float, float], bool] = le


def _ratio(row: dict[str, Any]) -> float:
    return row["ratio"]


def _fairness(row: dict[str, Any]) -> float:
    return row["busiest_to_idlest"]


def _tail(row: dict[str, Any]) -> float:
    return round(row["wait_p99_ms"] / (row["wait_p50_ms"] or 1), 2)


def _per_request(row: dict[str, Any]) -> float:
    return round(1 / (row["ratio"] or 1), 2)


TARGETS = [
    Target("in a transaction, x raw", "inside", "advisory_lock", _ratio, 1.2),
    Target("lock, update, commit, x raw", "commit", "advisory_lock", _ratio, 1.05),
    Target("with 1 ms each way, x raw", "commit-latency", "advisory_lock", _ratio, 1.02),
    Target("save_cas in a transaction, x save()", "save-inside", "save_cas", _ratio, 0.95),
    Target("bulk_save_cas, x bulk_update", "bulk", "bulk_save_cas", _ratio, 1.3),
    Target("lease of a name acquired before, x by hand", "lease", "again", _ratio, 1.25),
    Target("lease of a new name, x by hand", "lease", "new", _ratio, 1.25),
    Target("@idempotent, first call, x the view", "once", "idempotent", _ratio, 1.35),
    Target("the same, 1 ms each way", "once-latency", "idempotent", _ratio, 1.1),
    Target("the same through gunicorn, a request", "http-alone", "idempotent", _per_request, 1.1),
    Target("@idempotent, replay, x the view", "replay", "idempotent", _ratio, 0.6),
    Target("dblock list, x raw and print", "list", "list", _ratio, 1.2),
    Target("dblock list --json, x raw and print", "list-json", "list", _ratio, 1.2),
    *(
        target
        for crowd, title, least in (
            ("hot", "hot key", 0.97),
            ("hot-empty", "hot key, nothing inside", 0.85),
        )
        for target in (
            Target(f"{title}, throughput, x raw", crowd, "advisory_lock", _ratio, least, ge),
            Target(f"{title}, busiest ÷ idlest", crowd, "advisory_lock", _fairness, 1.2),
            Target(f"{title}, wait p99 ÷ p50", crowd, "advisory_lock", _tail, 3),
        )
    ),
]


def judged(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold what was measured against the targets."""
    rows = {
        (scenario["name"], row["name"]): row
        for scenario in [*found["scenarios"], *found["crowds"]]
        for row in scenario["rows"]
    }
    return [
        {
            "title": target.title,
            "scenario": target.scenario,
            "row": target.row,
            "value": (value := target.figure(row)),
            "limit": target.limit,
            "relation": "≥" if target.relation is ge else "≤",
            "met": target.relation(value, target.limit),
        }
        for target in TARGETS
        if (row := rows.get((target.scenario, target.row))) is not None
    ]
